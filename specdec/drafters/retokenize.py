"""Drafting with a model that has another tokenizer: both directions are translated through text.

Lossless, because the proposed tokens are the target's, which the verifier checks like any others. The draft is greedy
and its tokens become target tokens through text, so they have no probabilities. Every round encodes the whole row
again, but the draft's KV cache is kept for as much of the row as is still encoded the same way.
Source: the universal assisted generation of ``transformers`` (Moshe et al. 2024), for batches.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Any

import torch

from specdec.alignment.base import Kept
from specdec.alignment.layout import padded
from specdec.core.round import Draft
from specdec.core.sampling import argmax
from specdec.core.sequence import Sequence
from specdec.core.stop_strings import INCOMPLETE
from specdec.drafters.base import Drafter
from specdec.drafters.chain import chosen_chains
from specdec.drafters.context import DrafterContext
from specdec.drafters.last_fed import last_fed
from specdec.drafters.memory import DrafterMemory
from specdec.errors import ConfigError
from specdec.models.vocabulary import check_fit

TAIL = 8  # tokens encoded again together with new text, because a token may span the boundary


class RetokenizeDrafter(Drafter):
    """Greedy chain drafts from ``context.draft``, translated through text."""

    def __init__(self, context: DrafterContext) -> None:
        if context.draft is None or context.tokenizer is None or context.draft_tokenizer is None:
            raise ConfigError("drafter=retokenize needs a draft model with its own tokenizer: set pair.draft")
        check_fit(
            context.target, context.draft, context.tokenizer, context.draft_tokenizer, by_text=True, settings=True
        )
        self._model = context.draft
        self._alignment = context.align(context.draft)
        self._device = context.device
        self._ours, self._theirs = context.tokenizer, context.draft_tokenizer
        begin = self._theirs.bos_token_id
        self._prefix = [begin] if begin is not None and self._theirs.encode("a")[:1] == [begin] else []
        self._held: dict[int, list[int]] = {}  # draft tokens of each row that its cache holds

    @property
    def memory(self) -> DrafterMemory:
        return DrafterMemory(self._model)

    def admit(self, rows: list[Sequence]) -> None:
        for row in rows:
            self._held[row.index] = self._encode(row)[: self._model.context_length][:-1]
        self._alignment.admit([row.index for row in rows], [self._held[row.index] for row in rows])

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        """Draft ``gammas[b]`` tokens of the draft's vocabulary, which may be fewer or more of the target's."""
        encoded = [self._encode(row) for row in rows]
        room = [self._model.context_length - len(ids) for ids in encoded]
        steps = [gamma if ids and gamma < free else 0 for ids, gamma, free in zip(encoded, gammas, room, strict=True)]
        missing = [ids[len(self._held[row.index]) :] for row, ids in zip(rows, encoded, strict=True)]
        keys = [row.index for row in rows]
        drafted = self._extend(keys, missing, steps)
        drafts = []
        for row, ids, tokens, num_steps, gamma in zip(rows, encoded, drafted, steps, gammas, strict=True):
            tokens = tokens[:num_steps]
            if num_steps:
                self._held[row.index] = ids + tokens[:-1]
            drafts.append(self._translate(row, ids, tokens)[:gamma])
        return chosen_chains(drafts, self._device)

    def commit(self, rows: list[Sequence]) -> None:
        """Cut each cache back to what is still encoded the same way, less at least one token to feed."""
        kept: list[Kept] = []
        for row in rows:
            ids, held = self._encode(row), self._held[row.index]
            same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(ids, held, strict=False))))
            same = max(min(same, len(ids) - 1), 0)
            self._held[row.index] = held[:same]
            kept.append(same)
        self._alignment.commit([row.index for row in rows], kept)

    def release(self, rows: list[Sequence]) -> None:
        self._alignment.release([row.index for row in rows])
        for row in rows:
            del self._held[row.index]

    def _extend(self, keys: list[int], missing: list[list[int]], steps: list[int]) -> list[list[int]]:
        """Feed what each row's cache lacks, then draft; a row whose draft is complete feeds nothing more."""
        if not any(steps):
            return [[] for _ in keys]
        missing = [tokens if count else [] for tokens, count in zip(missing, steps, strict=True)]
        counts = [len(tokens) for tokens in missing]
        logits_BTV = self._alignment.forward(keys, padded(missing, self._model.device), counts)
        drafted = [argmax(last_fed(logits_BTV, counts))]
        for step in range(1, max(steps)):
            counts = [int(count > step) for count in steps]
            logits_BTV = self._alignment.forward(keys, drafted[-1][:, None], counts)
            drafted.append(argmax(logits_BTV[:, -1]))
        tokens: list[list[int]] = torch.stack(drafted, dim=1).tolist()
        return tokens

    def _encode(self, row: Sequence) -> list[int]:
        text = _decode(self._ours, row.tokens(0)).rstrip(INCOMPLETE)
        return self._prefix + list(self._theirs.encode(text, add_special_tokens=False))

    def _translate(self, row: Sequence, ids: list[int], drafted: list[int]) -> list[int]:
        """The target's tokens for the text that the draft added."""
        before = _decode(self._theirs, ids[-TAIL:])
        new = _decode(self._theirs, ids[-TAIL:] + drafted).rstrip(INCOMPLETE)[len(before) :]
        if not new:
            return []
        tail = row.tokens(max(row.length - TAIL, 0))
        text = _decode(self._ours, tail)
        with_new = list(self._ours.encode(text + new, add_special_tokens=False))
        for known in (tail, list(self._ours.encode(text, add_special_tokens=False))):
            if with_new[: len(known)] == known:
                return with_new[len(known) :]
        return list(self._ours.encode(new, add_special_tokens=False))


def _decode(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text
