"""The estimated survival of every slot, and what a round teaches of it: shared by the policies that rank by it."""

from __future__ import annotations

from dataclasses import dataclass, field

from specdec.budgets.base import Draft
from specdec.budgets.confidence import Confidence
from specdec.budgets.slots import Floats, Slots
from specdec.core.round import Round


@dataclass(slots=True)
class Survival:
    """Chances of acceptance, multiplied down each row."""

    confidence: Confidence = field(default_factory=Confidence)
    _slots: Slots | None = None
    _chances_BL: Floats | None = None

    def of(self, draft: Draft) -> tuple[Slots, Floats]:
        """The slots of a draft, and (B, L) the chance that each is reached and accepted."""
        slots = Slots.of(draft)
        self._slots, self._chances_BL = slots, self.confidence.chances(slots)
        return slots, self._chances_BL.cumprod(1)

    def observe(self, outcome: Round) -> None:
        """Learn from the round whose draft was looked at last."""
        slots, chances_BL = self._slots, self._chances_BL
        self._slots = self._chances_BL = None
        if slots is None or chances_BL is None:
            return  # nothing was drafted
        outcome.calibration = self.confidence.observe(slots, chances_BL, outcome.depths, outcome.num_accepted)
        outcome.cut_chances = [
            float(chances[depth]) if depth < before else 0.0
            for chances, depth, before in zip(chances_BL, outcome.depths, outcome.proposed, strict=True)
        ]
