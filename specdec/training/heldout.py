"""Held-out prompts in Spec-Bench's schema {question_id, category, turns}, cut from held-out files only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec.training import TrainingError
from specdec.training.config import HeldoutConfig
from specdec.training.corpus import Corpus
from specdec.training.snippets import Start, starts_by_kind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def make_prompts(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast, cfg: HeldoutConfig, seed: int
) -> list[dict[str, Any]]:
    """The same number of prompts for every kind of start; lengths are spaced evenly on a log scale between the limits.

    Files are used as evenly as the kinds allow, and no start is used twice.
    """
    random = np.random.default_rng(seed)
    starts = starts_by_kind(corpus.heldout, corpus.is_code)
    lengths = np.geomspace(cfg.min_tokens + 2, cfg.max_tokens - 4, cfg.num_prompts).astype(int)
    uses: dict[str, int] = {}
    prompts: list[dict[str, Any]] = []
    for index, num_tokens in enumerate(lengths):
        kind = list(starts)[index % len(starts)]
        text = _cut(starts[kind], uses, int(num_tokens), tokenizer, cfg, random, corpus.is_code)
        prompts.append({"question_id": index + 1, "category": kind, "turns": [text]})
    return prompts


def _cut(
    places: list[Start],
    uses: dict[str, int],
    num_tokens: int,
    tokenizer: PreTrainedTokenizerFast,
    cfg: HeldoutConfig,
    random: np.random.Generator,
    ascii_only: bool,
) -> str:
    """One prompt of about `num_tokens` from the least used file; removes its start from `places`."""
    order = sorted(random.permutation(len(places)), key=lambda index: uses.get(places[index][0].path, 0))
    for index in order:
        file, offset = places[index]
        ids = tokenizer.backend_tokenizer.encode(
            file.text[offset : offset + 12 * num_tokens], add_special_tokens=False
        ).ids[:num_tokens]
        text = str(tokenizer.decode(ids))
        length = len(tokenizer.backend_tokenizer.encode(text).ids)  # the tokenizer may merge the cut text differently
        if len(ids) == num_tokens and cfg.min_tokens <= length <= cfg.max_tokens and (text.isascii() or not ascii_only):
            uses[file.path] = uses.get(file.path, 0) + 1
            del places[index]
            return text
    raise TrainingError(f"heldout.num_prompts={cfg.num_prompts} is more than the held-out files yield")


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """The prompts of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
