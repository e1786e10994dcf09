"""The draft-length contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from specdec.sequence import Sequence

if TYPE_CHECKING:
    from specdec.engine import Round


class DraftLength(ABC):
    """Chooses gamma per row and round; the engine then cuts it to what the row may still emit."""

    @abstractmethod
    def choose(self, rows: list[Sequence]) -> list[int]:
        """Draft length wished for each row of the round, 0 allowed."""

    def observe(self, outcome: Round) -> None:
        """See what the round cost and accepted; a fixed policy need not care."""
        return
