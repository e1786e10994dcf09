"""Prompts in Spec-Bench's schema (question_id, category, turns): read, checked, encoded; none dropped silently."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from specdec import assets
from specdec.core.questions import question_of
from specdec.core.settings import setting
from specdec.core.text_files import listed, text_lines
from specdec.errors import ConfigError, DataError
from specdec.registry import unknown

_CHOICES = {
    "turns": ("first", "all", "conversation"),
    "overlong": ("refuse", "truncate", "skip"),
    "empty": ("refuse", "skip"),
    "broken": ("refuse", "skip"),
    "chat_template": ("auto", "always", "never"),
}


@dataclass
class DataConfig:
    """Prompts in Spec-Bench's schema: question_id, category, turns."""

    name: str = MISSING
    path: str | None = setting(
        None, "local JSONL file, or a URL or Hub name that `datasets` reads; asset:NAME ships with us"
    )
    split: str = setting("train", "for Hub datasets")
    turns: str = setting(
        "first", "first turns only; all: each a prompt of its own; conversation: each after the one before"
    )
    num_prompts: int | None = setting(None, "null means all (8 with weights=random)")
    category: list[str] | None = setting(None, "keep only these categories")
    prompt_tokens: int | None = setting(
        None, "cut or lengthen every prompt to exactly so many tokens; null: as they are"
    )
    max_input_tokens: int | None = setting(None, "null: context length minus max_new_tokens; a history counts too")
    overlong: str = setting("refuse", "a longer prompt: refuse (stop), truncate (keep its first tokens), skip")
    empty: str = setting("refuse", "a prompt without tokens: refuse or skip")
    broken: str = setting("refuse", "a line that is not valid: refuse or skip")
    shuffle: bool = False
    seed: int = setting(0, "of the shuffle")
    chat_template: str = setting("auto", "auto: if the tokenizer has one; always; never")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One encoded prompt."""

    index: int
    question_id: str | int
    category: str
    ids: list[int]
    turn: int = 0  # place in its conversation; a later turn waits for the answer to the prompt before it
    text: str = ""  # of the turn alone
    max_new_tokens: int | None = None  # where this prompt's output ends, if before the run's

    def budget(self, most: int) -> int:
        """Tokens that its output may have, of a run's ``most``."""
        return most if self.max_new_tokens is None else min(self.max_new_tokens, most)


def load_prompts(data: DataConfig, tokenizer: Any, max_input_tokens: int) -> tuple[list[Prompt], list[str]]:
    """Read, select and encode the prompts of ``data`` (the data group).

    Args:
        max_input_tokens: what fits the context beside the output; ``data.max_input_tokens`` may lower it.

    Returns:
        The prompts, numbered from 0 in the order they are to be output, and notes for the user (what was
        truncated or skipped).

    Raises:
        DataError: a line, prompt or source that cannot be used, with its number and reason.
    """
    for key, choices in _CHOICES.items():
        if getattr(data, key) not in choices:
            raise ConfigError(unknown(f"data.{key}", getattr(data, key), choices))
    if data.num_prompts is not None and data.num_prompts < 1:
        raise ConfigError(f"data.num_prompts={data.num_prompts}: it must be at least 1, or null for all")
    notes: list[str] = []
    questions = _select(data, _read(data, notes))
    limit = max_input_tokens
    if data.max_input_tokens is not None:
        if data.max_input_tokens < 1:
            raise ConfigError(f"data.max_input_tokens={data.max_input_tokens}: it must be at least 1")
        limit = min(limit, data.max_input_tokens)
    prompts: list[Prompt] = []
    changed: Counter[str] = Counter()
    for question in questions:
        for turn, text in enumerate(question["turns"] if data.turns != "first" else question["turns"][:1]):
            if len(prompts) == data.num_prompts:
                break
            ids = _fit(data, question, encode(tokenizer, text, data.chat_template), limit, changed)
            if ids is not None:
                place = turn if data.turns == "conversation" else 0
                prompts.append(Prompt(len(prompts), question["question_id"], question["category"], ids, place, text))
            elif data.turns == "conversation":
                break  # what comes later in a conversation builds on it
    prompts = _of_one_length(data, prompts, limit)
    notes += [f"{count} prompts {what}" for what, count in changed.items()]
    if not prompts:
        raise DataError(f"data={data.name}: no prompt is left to decode ({'; '.join(notes) or 'the source is empty'})")
    return prompts, notes


def encode(tokenizer: Any, text: str, chat_template: str) -> list[int]:
    """Token ids of one user turn, through the tokenizer's chat template where that is wanted."""
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if chat_template == "always" and not has_template:
        raise ConfigError("data.chat_template=always: this tokenizer has none; use auto or never")
    if has_template and chat_template != "never":
        message = [{"role": "user", "content": text}]
        rendered = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])
    return list(tokenizer(text)["input_ids"])


def _of_one_length(data: DataConfig, prompts: list[Prompt], limit: int) -> list[Prompt]:
    """Prompts of exactly ``prompt_tokens`` tokens: longer ones are cut, shorter ones go on with those after them."""
    size = data.prompt_tokens
    if size is None:
        return prompts
    if not 1 <= size <= limit:
        raise ConfigError(f"data.prompt_tokens={size}: it must be at least 1, and {limit} fit")
    if data.turns == "conversation":
        raise ConfigError("data.prompt_tokens sets the length of single prompts: it needs data.turns=first or all")
    made = []
    for place, prompt in enumerate(prompts):
        ids: list[int] = []
        while len(ids) < size:
            ids += prompts[place % len(prompts)].ids
            place += 1
        made.append(replace(prompt, ids=ids[:size]))
    return made


def _fit(
    data: DataConfig, question: dict[str, Any], ids: list[int], limit: int, changed: Counter[str]
) -> list[int] | None:
    """The ids as they are to be decoded, or None for a prompt that is skipped."""
    where = f"question_id {question['question_id']}"
    if not ids:
        if data.empty == "skip":
            changed["skipped because they are empty"] += 1
            return None
        raise DataError(f"{where}: the prompt has no tokens; mend it, or set data.empty=skip")
    if len(ids) > limit:
        if data.overlong == "truncate":
            changed[f"truncated to their first {limit} tokens"] += 1
            return ids[:limit]
        if data.overlong == "skip":
            changed[f"skipped because they are longer than {limit} tokens"] += 1
            return None
        raise DataError(
            f"{where}: the prompt has {len(ids)} tokens and {limit} fit (context length, max_new_tokens and "
            "data.max_input_tokens); set data.overlong=truncate or skip"
        )
    return ids


def _select(data: DataConfig, questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if data.category:
        known = {question["category"] for question in questions}
        for name in data.category:
            if name not in known:
                raise ConfigError(unknown("data.category", name, known))
        questions = [question for question in questions if question["category"] in data.category]
    if data.shuffle:
        random.Random(data.seed).shuffle(questions)
    return questions


def _read(data: DataConfig, notes: list[str]) -> list[dict[str, Any]]:
    """Questions from a local JSONL file, or from whatever `datasets` can load."""
    if not data.path:
        raise ConfigError(f"data={data.name} needs data.path: a JSONL file, a URL, or a Hub dataset")
    path = Path(assets.resolve(data.path)).expanduser()
    is_file = path.is_file()
    name, kind = (path.name, "line") if is_file else (str(data.path), "record")
    questions, broken, undecodable = [], [], False
    for number, record, problem in _lines(path) if is_file else _records(data):
        try:
            if problem:
                undecodable = True
                raise ValueError(problem)
            questions.append(question_of(record))
        except ValueError as error:
            broken.append(f"{kind} {number}: {error}")
    if broken and data.broken == "refuse":
        remedy = "save the file as UTF-8" if undecodable else f"mend the {kind}s"
        raise DataError(f"{name} {listed(broken)}; {remedy}, or set data.broken=skip")
    if broken:
        notes.append(f"{len(broken)} broken {kind}s of {name} skipped: {listed(broken)}")
    return questions


def _lines(path: Path) -> Iterator[tuple[int, Any, str | None]]:
    """Number, text and problem of every line that is not empty."""
    for line in text_lines(path):
        if line.problem or line.text.strip():
            yield line.number, line.text, line.problem


def _records(data: DataConfig) -> Iterator[tuple[int, Any, str | None]]:
    return ((number, record, None) for number, record in enumerate(_load_dataset(data), 1))


def _load_dataset(data: DataConfig) -> Any:
    from datasets.load import load_dataset

    path = str(data.path)
    is_url = "://" in path
    if not is_url and (path.startswith(("/", ".", "~")) or path.endswith((".jsonl", ".json"))):
        raise DataError(f"data.path={path}: no such file")
    try:
        if is_url:
            return list(load_dataset("json", data_files=path, split="train"))
        return list(load_dataset(path, split=data.split))
    except Exception as error:  # datasets raises what its many back ends raise
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise DataError(f"data.path={path} cannot be loaded: give a local JSONL file [{reason}]") from error
