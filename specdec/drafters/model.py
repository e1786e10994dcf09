"""Drafting with a smaller model of the same vocabulary, whose KV cache is aligned like the target's.

The draft cache always lags behind the row by its last two tokens, which the first step of a round feeds together.
After full acceptance the last drafted token was never fed, so some rows miss two tokens and others one; cutting all
of them back to the same lag keeps every round's shape equal at the price of one token in one forward.
Source: Leviathan et al. 2023 (drafting); the lag is described for batches in arXiv 2510.22876, section "KV cache".
"""

from __future__ import annotations

import torch

from specdec.alignment.base import Kept
from specdec.alignment.layout import padded
from specdec.drafters.base import Draft, Drafter
from specdec.drafters.context import DrafterContext
from specdec.errors import ConfigError
from specdec.sequence import Sequence

LAG = 2


class ModelDrafter(Drafter):
    """Greedy chain drafts from ``context.draft``."""

    def __init__(self, context: DrafterContext) -> None:
        if context.draft is None:
            raise ConfigError("drafter=model needs a draft model: set pair.draft, or choose drafter=none")
        self._model = context.draft
        self._alignment = context.align(context.draft)
        self._fed: set[int] = set()  # rows that this round fed with everything they had, and their drafts

    def admit(self, rows: list[Sequence]) -> None:
        """Prefill the prompts, but for their last tokens."""
        self._alignment.admit([row.index for row in rows], [row.tokens(0)[:-LAG] for row in rows])

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        """Draft greedily, one token per step; a row whose draft is long enough feeds nothing more."""
        keys = [row.index for row in rows]
        num_steps = max(gammas, default=0)
        self._fed = {key for key, gamma in zip(keys, gammas, strict=True) if gamma}
        if num_steps == 0:
            return Draft(torch.zeros(len(rows), 0, dtype=torch.long, device=self._model.device), list(gammas))
        missing = [
            row.tokens(self._alignment.length(row.index)) if gamma else []
            for row, gamma in zip(rows, gammas, strict=True)
        ]
        counts = [len(tokens) for tokens in missing]
        logits_BTV = self._alignment.forward(keys, padded(missing, self._model.device), counts)
        last_B = torch.tensor(counts, device=self._model.device).clamp(min=1) - 1
        logits_BV = logits_BTV[torch.arange(len(rows), device=self._model.device), last_B]
        steps = [logits_BV.argmax(-1)]
        for step in range(1, num_steps):
            counts = [int(gamma > step) for gamma in gammas]
            logits_BTV = self._alignment.forward(keys, steps[-1][:, None], counts)
            steps.append(logits_BTV[:, -1].argmax(-1))
        return Draft(torch.stack(steps, dim=1), list(gammas))

    def commit(self, rows: list[Sequence]) -> None:
        """Cut every row back to its lag behind what was emitted."""
        # A row that drafted nothing this round was fed nothing, and keeps what it had.
        kept: list[Kept] = [
            max(row.length - LAG, 0) if row.index in self._fed else self._alignment.length(row.index) for row in rows
        ]
        self._alignment.commit([row.index for row in rows], kept)

    def release(self, rows: list[Sequence]) -> None:
        """Forget rows and their cache."""
        self._alignment.release([row.index for row in rows])
