"""The prompts of a run: selected, encoded and fitted into the context; none is dropped silently."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import MISSING

from specdec.core.declared_prefix import check_begins, first_tokens, opening, read_prefix
from specdec.core.prompt_sources import read_questions
from specdec.core.questions import Message, Question
from specdec.core.settings import setting
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
    """Prompts, one JSON object per line: question_id, category and turns (Spec-Bench), or prompt, or messages."""

    name: str = MISSING
    path: str | None = setting(
        None, "local JSONL file, or a URL or Hub name that `datasets` reads; asset:NAME is part of this package"
    )
    split: str = setting("train", "split of a Hub dataset")
    subset: str | None = setting(None, "subset of a Hub dataset; null: its default")
    turns: str = setting(
        "first",
        "first: first turns only; all: every turn as a separate prompt; conversation: every turn after the model's own "
        "answers. A line of messages is one prompt, except with conversation",
    )
    num_prompts: int | None = setting(None, "null means all (8 with weights=random)")
    category: list[str] | None = setting(None, "keep only these categories")
    shared_prefix: str | None = setting(
        None, "UTF-8 file of a text that every prompt begins with; its tokens are computed once and held for the run"
    )
    prompt_tokens: int | None = setting(None, "cut or extend every prompt to exactly this many tokens; null: unchanged")
    max_input_tokens: int | None = setting(
        None, "longest prompt, history included; null: context length minus max_new_tokens"
    )
    overlong: str = setting("refuse", "a longer prompt: refuse (stop), truncate (keep its first tokens), skip")
    empty: str = setting("refuse", "a prompt without tokens: refuse or skip")
    broken: str = setting("refuse", "a line that is not valid: refuse or skip")
    shuffle: bool = False
    seed: int = setting(0, "seed of the shuffle")
    chat_template: str = setting("auto", "auto: if the tokenizer has one; always; never")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One encoded prompt."""

    index: int
    question_id: str | int
    category: str
    ids: list[int]
    turn: int = 0  # number in its conversation; a later turn waits for the answer to the one before it
    text: str = ""  # of the turn alone
    max_new_tokens: int | None = None  # its own limit, if lower than the run's
    num_declared: int = 0  # first tokens that every prompt of the run begins with (data.shared_prefix)

    def budget(self, limit: int) -> int:
        """The most tokens that its output may have, where ``limit`` is the run's max_new_tokens."""
        return limit if self.max_new_tokens is None else min(self.max_new_tokens, limit)


def load_prompts(data: DataConfig, tokenizer: Any, max_input_tokens: int) -> tuple[list[Prompt], list[str]]:
    """Read, select and encode the prompts of ``data`` (the data group).

    Args:
        max_input_tokens: the room that the output leaves in the context; ``data.max_input_tokens`` may lower it.

    Returns:
        The prompts, numbered from 0 in the order of the output, and notes for the user (what was truncated or
        skipped).

    Raises:
        DataError: a line, prompt or source cannot be used; the message has its number and the reason.
    """
    for key, choices in _CHOICES.items():
        if getattr(data, key) not in choices:
            raise ConfigError(unknown(f"data.{key}", getattr(data, key), choices))
    if data.num_prompts is not None and data.num_prompts < 1:
        raise ConfigError(f"data.num_prompts={data.num_prompts}: it must be at least 1, or null for all")
    prefix = None if data.shared_prefix is None else read_prefix(data.shared_prefix)
    notes: list[str] = []
    questions = _select(data, _read(data, notes))
    limit = max_input_tokens
    if data.max_input_tokens is not None:
        if data.max_input_tokens < 1:
            raise ConfigError(f"data.max_input_tokens={data.max_input_tokens}: it must be at least 1")
        limit = min(limit, data.max_input_tokens)
    prompts: list[Prompt] = []
    changed: Counter[str] = Counter()
    declared: list[int] = []
    for question in questions:
        for turn, messages in enumerate(question.prompts(data.turns)):
            if len(prompts) == data.num_prompts:
                break
            if prefix is not None and (data.turns != "conversation" or not turn):
                _check_prefix(data, question, messages, tokenizer, prefix)
                declared = declared or _encoded(data, question, _declared(data, messages, tokenizer, prefix), tokenizer)
            ids = _fit(data, question, _encoded(data, question, messages, tokenizer), limit, changed)
            if ids is not None:
                place, text = turn if data.turns == "conversation" else 0, messages[-1]["content"]
                prompts.append(Prompt(len(prompts), question.question_id, question.category, ids, place, text))
            elif data.turns == "conversation":
                break  # later turns need the answer to this one
    prompts = _of_one_length(data, prompts, limit)
    notes += [f"{count} prompts {what}" for what, count in changed.items()]
    if not prompts:
        raise DataError(f"data={data.name}: no prompt is left to decode ({'; '.join(notes) or 'the source is empty'})")
    if data.shared_prefix is not None:
        count = first_tokens(declared, [prompt.ids for prompt in prompts if not prompt.turn], data.shared_prefix)
        prompts = [replace(prompt, num_declared=0 if prompt.turn else count) for prompt in prompts]
        notes.append(f"data.shared_prefix: the first {count} tokens of every prompt are held once")
    return prompts, notes


def declared_tokens(prompts: list[Prompt]) -> list[int]:
    """The first tokens that every prompt of a run was declared to begin with."""
    return next((prompt.ids[: prompt.num_declared] for prompt in prompts if prompt.num_declared), [])


def _check_prefix(data: DataConfig, question: Question, messages: list[Message], tokenizer: Any, prefix: str) -> None:
    where = f"question_id {question.question_id}"
    check_begins(prefix, opening(messages, _templated(tokenizer, data.chat_template)), where, str(data.shared_prefix))


def _declared(data: DataConfig, messages: list[Message], tokenizer: Any, prefix: str) -> list[Message]:
    """A prompt that says no more than the declared text; templates may need the messages after the first."""
    rest = messages[1:] if _templated(tokenizer, data.chat_template) else []
    return [{**messages[0], "content": prefix}, *rest]


def _read(data: DataConfig, notes: list[str]) -> list[Question]:
    if not data.path:
        raise ConfigError(f"data={data.name} needs data.path: a JSONL file, a URL, or a Hub dataset")
    questions, found = read_questions(data.path, data.split, data.subset, skip_broken=data.broken == "skip")
    notes += found
    return questions


def _encoded(data: DataConfig, question: Question, messages: list[Message], tokenizer: Any) -> list[int]:
    from jinja2 import TemplateError

    try:
        return encode(tokenizer, messages, data.chat_template)
    except TemplateError as error:
        raise DataError(
            f"question_id {question.question_id}: the tokenizer's chat template refuses it ({error}); set "
            "data.chat_template=never, or leave the line out"
        ) from error


def encode(tokenizer: Any, messages: list[Message], chat_template: str) -> list[int]:
    """Token ids of messages, through the tokenizer's chat template where that is wanted; without it, one per line."""
    if _templated(tokenizer, chat_template):
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])
    return list(tokenizer("\n".join(message["content"] for message in messages))["input_ids"])


def _templated(tokenizer: Any, chat_template: str) -> bool:
    """Whether messages go through a chat template."""
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if chat_template == "always" and not has_template:
        raise ConfigError("data.chat_template=always: this tokenizer has none; use auto or never")
    return has_template and chat_template != "never"


def _of_one_length(data: DataConfig, prompts: list[Prompt], limit: int) -> list[Prompt]:
    """Prompts of exactly ``prompt_tokens`` tokens: longer ones are cut, shorter ones extended by those after them."""
    size = data.prompt_tokens
    if size is None:
        return prompts
    if not 1 <= size <= limit:
        raise ConfigError(f"data.prompt_tokens={size}: it must be from 1 to {limit}, the longest prompt that fits")
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


def _fit(data: DataConfig, question: Question, ids: list[int], limit: int, changed: Counter[str]) -> list[int] | None:
    """The ids to decode, or None for a prompt that is skipped."""
    where = f"question_id {question.question_id}"
    if not ids:
        if data.empty == "skip":
            changed["skipped because they are empty"] += 1
            return None
        raise DataError(f"{where}: the prompt has no tokens; fix it, or set data.empty=skip")
    if len(ids) > limit:
        if data.overlong == "truncate":
            changed[f"truncated to their first {limit} tokens"] += 1
            return ids[:limit]
        if data.overlong == "skip":
            changed[f"skipped because they are longer than {limit} tokens"] += 1
            return None
        raise DataError(
            f"{where}: the prompt has {len(ids)} tokens, but only {limit} fit (context length, max_new_tokens and "
            "data.max_input_tokens); set data.overlong=truncate or skip"
        )
    return ids


def _select(data: DataConfig, questions: list[Question]) -> list[Question]:
    if data.category:
        known = {question.category for question in questions}
        for name in data.category:
            if name not in known:
                raise ConfigError(unknown("data.category", name, known))
        questions = [question for question in questions if question.category in data.category]
    if data.shuffle:
        random.Random(data.seed).shuffle(questions)
    return questions
