"""Held-out prompts in Spec-Bench's schema {question_id, category, turns}, cut from held-out files only."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec.training import TrainingError
from specdec.training.chat import heldout_conversations
from specdec.training.config import HeldoutConfig
from specdec.training.corpus import Corpus
from specdec.training.shares import Mixture
from specdec.training.snippets import Starts, starts_by_kind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MOST_STARTS = 20_000
"""Starts of a kind that prompts are looked for among; of more, so many are drawn."""


def make_prompts(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast, cfg: HeldoutConfig, seed: int
) -> list[dict[str, Any]]:
    """The same number of prompts for every kind of start; lengths are spaced evenly on a log scale between the limits.

    Files are used as evenly as the kinds allow, and no start is used twice.
    """
    random = np.random.default_rng(seed)
    starts = starts_by_kind(corpus.heldout, corpus.is_code, corpus.folder)
    left = {kind: _some(places, random) for kind, places in starts.items()}
    lengths = np.geomspace(cfg.min_tokens + 2, cfg.max_tokens - 4, cfg.num_prompts).astype(int)
    uses = Counter[int]()
    prompts: list[dict[str, Any]] = []
    for index, num_tokens in enumerate(lengths):
        kind = list(starts)[index % len(starts)]
        text = _cut(starts[kind], left[kind], uses, int(num_tokens), tokenizer, cfg, random, corpus.is_code)
        prompts.append({"question_id": index + 1, "category": kind, "turns": [text]})
    return prompts


def _some(starts: Starts, random: np.random.Generator) -> list[tuple[int, int]]:
    """All places, or as many as prompts are looked for among."""
    if len(starts) <= MOST_STARTS:
        return starts.places(slice(None))
    return starts.places(np.sort(random.choice(len(starts), MOST_STARTS, replace=False)))


def _cut(
    starts: Starts,
    left: list[tuple[int, int]],
    uses: Counter[int],
    num_tokens: int,
    tokenizer: PreTrainedTokenizerFast,
    cfg: HeldoutConfig,
    random: np.random.Generator,
    ascii_only: bool,
) -> str:
    """One prompt of about `num_tokens` from the least used file; removes its start from those that are `left`."""
    order = sorted(random.permutation(len(left)), key=lambda index: uses[left[index][0]])
    for index in order:
        ids = tokenizer.backend_tokenizer.encode(
            starts.text(left[index], 12 * num_tokens), add_special_tokens=False
        ).ids[:num_tokens]
        text = str(tokenizer.decode(ids))
        length = len(tokenizer.backend_tokenizer.encode(text).ids)  # the tokenizer may merge the cut text differently
        if len(ids) == num_tokens and cfg.min_tokens <= length <= cfg.max_tokens and (text.isascii() or not ascii_only):
            uses[left[index][0]] += 1
            del left[index]
            return text
    raise TrainingError(f"heldout.num_prompts={cfg.num_prompts} is more than the held-out files yield")


def mixed_prompts(corpus: Corpus, tokenizer: Any, cfg: HeldoutConfig, seed: int) -> list[dict[str, Any]]:
    """Prompts of every part of a mixture, as many as its share asks for."""
    mixture = Mixture(corpus.shares)
    counts = Counter(mixture(number)[0] for number in range(cfg.num_prompts))
    prompts = list[dict[str, Any]]()
    for number, part in enumerate(corpus.parts):
        if counts[number]:
            make = heldout_conversations if part.is_chat else make_prompts
            prompts += make(part, tokenizer, replace(cfg, num_prompts=counts[number]), seed)
    return [{**prompt, "question_id": number} for number, prompt in enumerate(prompts, 1)]


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """The prompts of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
