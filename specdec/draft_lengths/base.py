"""The draft-length contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from specdec.core.sequence import Sequence

if TYPE_CHECKING:
    from specdec.core.round import Round
    from specdec.draft_lengths.profile import Profiler


class DraftLength(ABC):
    """Chooses the draft length (gamma) of each row and round.

    A plug-in's constructor gets its settings by keyword, and nothing by position. Its registration declares ``per_row``
    and ``reads_clock`` (see `specdec.registry.Entry`).
    """

    drafting: bool = True
    """Whether the draft model prefills new rows along with the target; set it to false while nothing is drafted."""

    def prepare(self, profiler: Profiler, batch: int) -> None:  # noqa: B027
        """Called before the clock of a run of up to ``batch`` rows starts, for policies that measure the pair first."""

    width: int | None = None
    """Paths or nodes of the trees of the next rounds, where the drafter's tree is ``shaped``; None: its own width."""

    @abstractmethod
    def choose(self, rows: list[Sequence]) -> list[int]:
        """Draft length of each row of the round, 0 allowed. The engine cuts it to the row's remaining budget."""

    def observe(self, outcome: Round) -> None:
        """Called after every round with its costs and its acceptance."""
        return
