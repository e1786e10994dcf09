"""KNOWN TO BE BIASED: the prefix of slots with the most expected tokens per second, over all prefixes.

Whether an early slot is kept then depends on the survival of later ones, which its own token decides. With a convex
cost it equals ``early_stop``; measured costs are not convex. Kept to show what the conformance kit finds.
"""

from __future__ import annotations

from specdec.budgets.admission import Queue
from specdec.budgets.base import Draft, Sequence
from specdec.budgets.early_stop import EarlyStopBudget, known


class GlobalOptimumBudget(EarlyStopBudget):
    """Keeps the best prefix of slots by measured costs as they are."""

    def __init__(self, *, max_gamma: int = 8) -> None:
        super().__init__(max_gamma=max_gamma, convex=False)

    def keep(self, rows: list[Sequence], draft: Draft) -> list[int] | None:
        slots, survival_BL = self.survival.of(draft)
        queue = Queue.of(slots, survival_BL)
        rates = queue.rates(slots, survival_BL, known(self.seconds), self.ragged)
        return queue.depths(len(rows), int(rates.argmax()))
