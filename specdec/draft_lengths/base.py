"""The draft-length contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from specdec.core.sequence import Sequence

if TYPE_CHECKING:
    from specdec.core.round import Round
    from specdec.draft_lengths.profile import Profiler


class DraftLength(ABC):
    """Chooses gamma per row and round; the engine then cuts it to what the row may still emit.

    A plug-in's constructor gets its settings by keyword, and nothing by position. `specdec.registry.Entry` lists what
    is said of a policy where it is registered: ``per_row``, ``reads_clock``.
    """

    drafting: bool = True
    """Whether newcomers are expected to draft soon; while false, their prompts are not read by the draft."""

    def prepare(self, profiler: Profiler, batch: int) -> None:  # noqa: B027
        """Measure what must be known before a run of up to ``batch`` rows, outside its time; most need nothing."""

    @abstractmethod
    def choose(self, rows: list[Sequence]) -> list[int]:
        """Draft length wished for each row of the round, 0 allowed."""

    def observe(self, outcome: Round) -> None:
        """See what the round cost and accepted; a fixed policy need not care."""
        return
