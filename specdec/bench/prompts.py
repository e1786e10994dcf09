"""The prompts of a cell: as many as it needs, as they are or of about a set number of tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from specdec.assets import local_path
from specdec.core.files import write_atomically
from specdec.core.prompts import Prompt
from specdec.errors import ConfigError

_SPREAD = 5  # a context of N tokens means N - N / 5 to N, so that a batch stays ragged
_STRIDE = 37
_GOLDEN = 0.6180339887498949


def data_overrides(data: str) -> list[str]:
    """Overrides that choose the data group: the built-in prompts, or a file; shuffled, always in the same way.

    The built-in prompts are stored by length: in that order batches are nearly even, and sorting gains nothing.

    Raises:
        ConfigError: it is neither.
    """
    if data == "heldout":
        return ["data=heldout", "data.shuffle=true"]
    if not Path(data).is_file():
        raise ConfigError(f"data={data}: no such file; give a JSONL file in Spec-Bench's schema, or heldout")
    return ["data=jsonl", f"data.path={data}", "data.overlong=truncate", "data.shuffle=true"]


def count_overrides(data: str, count: int, cache: Path) -> list[str]:
    """Overrides for ``count`` prompts: the file's, or the built-in ones and pieces of them."""
    if data == "heldout":
        return ["data=jsonl", f"data.path={_cut_prompts(count, cache)}", f"data.num_prompts={count}"]
    return [*data_overrides(data), "data.max_input_tokens=256", f"data.num_prompts={count}"]


def _cut_prompts(count: int, cache: Path) -> Path:
    """A file of that many different prompts: each built-in one whole, then joined with its neighbour and cut."""
    lines = local_path("asset:heldout.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [str(json.loads(line)["turns"][0]) for line in lines]
    chosen = []
    for number in range(count):
        turn, place = divmod(number, len(texts))
        text = texts[place] if turn == 0 else texts[place] + "\n" + texts[(place + turn) % len(texts)]
        chosen.append(text if turn == 0 else text[: len(texts[place]) + 13 * turn + place % 7])
    path = cache / f"prompts-{count}.jsonl"
    write_atomically(path, "".join(json.dumps({"prompt": text}) + "\n" for text in chosen))
    return path


def cell_prompts(pool: list[Prompt], count: int, context: int | None, limit: int, whole: bool = False) -> list[Prompt]:
    """``count`` prompts, the pool's in turn.

    Args:
        context: tokens of the longest; prompts are then joined with those that follow them and cut, to between four
            fifths of it and all of it. None: as they are.
        limit: tokens that fit beside the output.
        whole: take the pool's prompts of that length as they are: a chat template must not be cut.
    """
    if context is not None and context > limit:
        raise ConfigError(f"contexts={context}: {limit} tokens fit beside the output; choose less")
    if context is not None and whole:
        pool, context = _of_length(pool, context), None
    chosen = []
    for index in range(count):
        prompt = pool[index % len(pool)]
        ids = prompt.ids
        if context is not None:
            wanted = context - (index * _STRIDE) % max(context // _SPREAD, 1)
            ids = _joined(pool, index, wanted)
        chosen.append(Prompt(index, prompt.question_id, prompt.category, ids[:limit]))
    return chosen


def uneven(prompts: list[Prompt], longest: int, spread: float) -> list[Prompt]:
    """The prompts, each with its own budget: evenly spread from (1 - spread) / (1 + spread) of ``longest`` up to it.

    Outputs that all have one length flatter what never drafts: its rows end together and are refilled together.
    """
    shortest = longest * (1 - spread) / (1 + spread)
    places = [(prompt.index * _GOLDEN) % 1 for prompt in prompts]  # neighbours are far apart, and no two are equal
    return [
        replace(prompt, max_new_tokens=max(1, round(shortest + place * (longest - shortest))))
        for prompt, place in zip(prompts, places, strict=True)
    ]


def _of_length(pool: list[Prompt], context: int) -> list[Prompt]:
    """The prompts of about ``context`` tokens."""
    shortest = context - context // _SPREAD
    if not (found := [prompt for prompt in pool if shortest <= len(prompt.ids) <= context]):
        raise ConfigError(
            f"contexts={context}: no prompt of data has {shortest} to {context} tokens; choose another length"
        )
    return found


def _joined(pool: list[Prompt], index: int, num_tokens: int) -> list[int]:
    """The first tokens of a prompt and of those that follow it."""
    ids: list[int] = []
    while len(ids) < num_tokens:
        ids += pool[index % len(pool)].ids
        index += 1
    return ids[:num_tokens]
