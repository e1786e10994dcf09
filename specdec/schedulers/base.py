"""The Scheduler contract."""

from __future__ import annotations

from abc import ABC, abstractmethod

from specdec.sequence import Sequence, SequencePool


class Scheduler(ABC):
    """Picks the rows of the next round; moves rows from waiting to active, never out of the pool."""

    prefill_share: float = 1.0
    """Share of the time that reading newcomers' prompts may take from rows that decode; 1: prompts are read whole."""

    @abstractmethod
    def select(self, pool: SequencePool) -> list[Sequence]:
        """Unfinished rows of the next round, at least one while the pool is not done.

        Rows that were not active before must be made so through ``pool.activate``. The engine reads their prompts;
        a row whose prompt is not read to the end sits the round out.
        """

    def end_round(self, rows: list[Sequence]) -> None:
        """See the round's rows after their tokens are emitted, and before those that have finished leave.

        A scheduler may end further rows here by giving them a ``stop_reason``; none that is correct does.
        """
        return
