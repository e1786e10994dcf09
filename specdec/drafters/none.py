"""No drafting: every round emits one token of the target, which is plain batched decoding."""

from __future__ import annotations

from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.drafters.base import Drafter
from specdec.drafters.chain import chosen_chains
from specdec.drafters.context import DrafterContext


class NoDrafter(Drafter):
    """Proposes nothing, at no cost."""

    max_length = 0

    def __init__(self, context: DrafterContext) -> None:
        self._device = context.device

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        return chosen_chains([[] for _ in rows], self._device)

    def release(self, rows: list[Sequence]) -> None:
        """Nothing is kept of a row."""
