"""No budget: every drafted token is verified."""

from __future__ import annotations

from specdec.budgets.base import Budget, Draft, Sequence
from specdec.budgets.survival import Survival
from specdec.core.round import Round


class NoBudget(Budget):
    """Cuts nothing; compares the predictions of a drafter that makes some with what came true."""

    def __init__(self) -> None:
        self._draft: Draft | None = None

    def keep(self, rows: list[Sequence], draft: Draft) -> list[int] | None:
        self._draft = draft
        return None

    def observe(self, outcome: Round) -> None:
        draft, self._draft = self._draft, None
        if draft is None or draft.chances_BG is None:
            return
        survival = Survival()
        survival.of(draft)
        survival.observe(outcome)
