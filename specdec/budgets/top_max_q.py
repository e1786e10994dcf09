"""A number of drafted tokens for the slots at which the draft is most certain, over all rows."""

from __future__ import annotations

from specdec.budgets.base import Draft
from specdec.budgets.ranked import RankedBudget
from specdec.budgets.slots import Floats, Slots


class TopMaxQBudget(RankedBudget):
    """By the largest probability of the slot's distribution, whatever was drawn from it."""

    def scores(self, slots: Slots, survival_BL: Floats, draft: Draft) -> Floats:
        return survival_BL if slots.top_BL is None else slots.top_BL
