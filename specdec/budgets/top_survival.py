"""A number of drafted tokens for the slots that most probably survive, over all rows."""

from __future__ import annotations

from specdec.budgets.base import Draft
from specdec.budgets.ranked import RankedBudget
from specdec.budgets.slots import Floats, Slots


class TopSurvivalBudget(RankedBudget):
    """By the estimated chance that a slot is reached and accepted."""

    def scores(self, slots: Slots, survival_BL: Floats, draft: Draft) -> Floats:
        return survival_BL
