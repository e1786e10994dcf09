"""Questions that the target writes itself: given the beginning of its chat template, it goes on with a user's turn.

A target that was trained on conversations has learned the users' turns too, so a corpus of the kind that it was made
for costs nothing but time (Magpie, arXiv 2406.08464). Its answers are made from them as from any other corpus.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from specdec.core.files import write_json, write_lines
from specdec.core.loops import in_loops
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence
from specdec.models.causal_lm import CausalLM
from specdec.training import TrainingError
from specdec.training.chat import check_template, rendered
from specdec.training.config import LINE_EVERY_S
from specdec.training.corpus_config import QuestionsConfig
from specdec.training.decoding import decode
from specdec.training.shared_outputs import share, shared_questions
from specdec.training.split import alike

FILE = "questions.jsonl"
_MARK = "specdec"  # stands for the user's text, to find where that begins and ends
_MOST_ASKED = 5  # turns written per question wanted, before we give up


class Turn(NamedTuple):
    """Where a user's turn begins, and how it ends."""

    start_ids: list[int]
    end: str  # what the template puts behind the text
    stop_ids: frozenset[int]


def write_questions(
    target: CausalLM,
    tokenizer: Any,
    cfg: QuestionsConfig,
    seed: int,
    out: Path,
    *,
    stop_ids: frozenset[int],
    made_by: str,
) -> dict[str, Any]:
    """Write ``out/questions.jsonl``: conversations of one user's turn each; batches of an earlier run are kept.

    Turns that do not end, loop, say too little, or were said before are left out.

    Args:
        stop_ids: tokens at which the target stops. made_by: the target's fingerprint.

    Raises:
        TrainingError: the tokenizer has no chat template, or too few turns can be used.
    """
    turn = user_turn(tokenizer, stop_ids)
    found: dict[str, str] = {}
    started_s = told_s = time.monotonic()
    num_asked = 0
    while len(found) < cfg.num:
        if num_asked >= _MOST_ASKED * max(cfg.num, cfg.batch):
            raise TrainingError(
                f"of {num_asked} turns that the target wrote, {len(found)} can be used (they end, do not loop, and "
                f"differ): lower questions.num={cfg.num}, raise questions.max_tokens or questions.temperature, or give "
                "a corpus (corpus.source=jsonl)"
            )
        path = out / f"batch_{num_asked // cfg.batch:04d}.json"
        for ids in _batch(target, turn, cfg, seed, path, made_by):
            text = usable(ids, tokenizer, turn)
            if text is not None:
                found.setdefault(" ".join(text.lower().split()), text)
        num_asked += cfg.batch
        now = time.monotonic()
        if now - told_s >= LINE_EVERY_S or len(found) >= cfg.num:
            print(f"[questions] {len(found)} of {cfg.num}  {(now - started_s) / 60:.1f} min", flush=True)
            told_s = now
    texts = list(found.values())[: cfg.num]
    write_lines(out / FILE, [{"messages": [{"role": "user", "content": text}]} for text in texts])
    return {"questions": len(texts), "turns_written": num_asked}


def user_turn(tokenizer: Any, stop_ids: frozenset[int]) -> Turn:
    """How the tokenizer's chat template frames the first user's turn.

    Raises:
        TrainingError: it has no template, or one that does not show the user's text.
    """
    check_template(tokenizer, "corpus.source=target")
    asked = ({"role": "user", "content": _MARK},)
    before, found, after = rendered(tokenizer, asked).partition(_MARK)
    if not found:
        raise TrainingError("corpus.source=target: the tokenizer's chat template does not render what a user says")
    after = after.strip() or rendered(tokenizer, asked, add_generation_prompt=True).partition(_MARK)[2].strip()
    after_ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    ends = set(after_ids[:1]) & set(tokenizer.all_special_ids)
    start_ids = tokenizer(before, add_special_tokens=False)["input_ids"]
    if not start_ids:
        raise TrainingError("corpus.source=target: the tokenizer's chat template begins with the user's text itself")
    return Turn(start_ids, after, stop_ids | ends)


def usable(ids: list[int], tokenizer: Any, turn: Turn) -> str | None:
    """The user's text, if it ended, does not loop, has some words and no other special token."""
    said = ids[:-1] if ids[-1:] and ids[-1] in turn.stop_ids else ids
    text, ended, _ = str(tokenizer.decode(said, skip_special_tokens=False)).partition(turn.end or "\0")
    loops = any(in_loops(said)) or set(said) & set(tokenizer.all_special_ids)
    if (len(said) == len(ids) and not ended) or loops or len(text.split()) < 3:
        return None
    return text.strip()


def _batch(target: CausalLM, turn: Turn, cfg: QuestionsConfig, seed: int, path: Path, made_by: str) -> list[list[int]]:
    """Token ids of one batch of turns: from the folder, from the cache, or written now."""
    index = int(path.stem.split("_")[1])
    first = seed + index * cfg.batch
    shared = shared_questions(target, made_by, turn.start_ids, cfg, turn.stop_ids, first)
    if not path.exists() and not share(shared, path):
        write_json(path, _turns(target, turn, cfg, first))
        share(path, shared)
    try:
        found: list[list[int]] = json.loads(path.read_text())
    except ValueError as error:
        raise TrainingError(f"{path} is damaged ({error}): delete it; it is written again") from error
    return found


@alike
@torch.inference_mode()
def _turns(target: CausalLM, turn: Turn, cfg: QuestionsConfig, first: int) -> list[list[int]]:
    """The token ids of a batch of turns, sampled with the seeds from ``first`` on."""
    rows = [
        Sequence(b, turn.start_ids, cfg.max_tokens, turn.stop_ids, _sampling(cfg, first + b)) for b in range(cfg.batch)
    ]
    decode(target, rows, len(rows), verifier="naive", execution="auto")
    return [list(row.output_ids) for row in rows]


def _sampling(cfg: QuestionsConfig, seed: int) -> SamplingParams:
    return SamplingParams(temperature=cfg.temperature, top_p=cfg.top_p, seed=seed)
