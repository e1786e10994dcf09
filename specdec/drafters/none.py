"""No drafting: every round emits one token of the target, which is plain batched decoding."""

from __future__ import annotations

import torch

from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.drafters.base import Drafter
from specdec.drafters.context import DrafterContext


class NoDrafter(Drafter):
    """Proposes nothing, at no cost."""

    max_length = 0

    def __init__(self, context: DrafterContext) -> None:
        self._device = context.device

    def admit(self, rows: list[Sequence]) -> None:
        """Nothing to prepare."""

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        """An empty draft for every row."""
        tokens_BG = torch.zeros(len(rows), 0, dtype=torch.long, device=self._device)
        return Draft(tokens_BG, [0] * len(rows))

    def commit(self, rows: list[Sequence]) -> None:
        """Nothing to drop."""

    def release(self, rows: list[Sequence]) -> None:
        """Nothing to forget."""
