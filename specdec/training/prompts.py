"""Prompts of the training side of a corpus, for the target to answer: cut from files, or questions of conversations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec.training import TrainingError
from specdec.training.chat import ChatPrompts
from specdec.training.config import OutputsConfig
from specdec.training.corpus import Corpus
from specdec.training.shares import Mixture
from specdec.training.snippets import PROSE_KINDS, starts_by_kind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def prompt_source(corpus: Corpus, tokenizer: Any, cfg: OutputsConfig, seed: int) -> Callable[[int], list[list[int]]]:
    """Batches of prompts of the training side of a corpus, by their number; each is of one part of a mixture."""
    sources = [(ChatPrompts if part.is_chat else PromptSource)(part, tokenizer, cfg, seed) for part in corpus.parts]
    mixture = Mixture(corpus.shares)

    def batch(index: int) -> list[list[int]]:
        part, own = mixture(index)
        return sources[part].batch(own)

    return batch


class PromptSource:
    """Prompts cut from training files, at starts of every kind; batch `index` depends on the seed alone."""

    def __init__(self, corpus: Corpus, tokenizer: PreTrainedTokenizerFast, cfg: OutputsConfig, seed: int) -> None:
        self.starts = starts_by_kind(corpus.train, corpus.is_code, corpus.folder)
        self.tokenizer, self.cfg, self.seed = tokenizer, cfg, seed

    def batch(self, index: int) -> list[list[int]]:
        """Prompts of one length, log-uniform between the limits."""
        random = np.random.default_rng([self.seed, index])
        low, high = np.log(self.cfg.min_prompt_tokens), np.log(self.cfg.max_prompt_tokens + 1)
        num_tokens = int(np.exp(random.uniform(low, high)))
        rows: list[list[int]] = []
        for _ in range(1000 * self.cfg.batch):
            ids = self._prompt(num_tokens, random)
            if len(ids) == num_tokens:
                rows.append(ids)
            if len(rows) == self.cfg.batch:
                return rows
        raise TrainingError(f"the corpus has too few texts of {num_tokens} tokens; lower greedy.max_prompt_tokens")

    def _prompt(self, num_tokens: int, random: np.random.Generator) -> list[int]:
        prose = [kind for kind in PROSE_KINDS if kind in self.starts]
        code = [kind for kind in self.starts if kind not in PROSE_KINDS]
        kinds = prose if prose and random.random() < self.cfg.prose_share else code
        places = self.starts[kinds[random.integers(len(kinds))]]
        (place,) = places.places([random.integers(len(places))])
        text = places.text(place, 12 * num_tokens)
        ids: list[int] = self.tokenizer.backend_tokenizer.encode(text).ids
        return ids[:num_tokens]
