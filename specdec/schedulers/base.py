"""The Scheduler contract."""

from __future__ import annotations

from abc import ABC, abstractmethod

from specdec.sequence import Sequence, SequencePool


class Scheduler(ABC):
    """Picks the rows of the next round; moves rows from waiting to active, never out of the pool."""

    @abstractmethod
    def select(self, pool: SequencePool) -> list[Sequence]:
        """Unfinished rows of the next round, at least one while the pool is not done.

        Rows that were not active before must be made so through ``pool.activate``; the engine prefills them.
        """

    def end_round(self, rows: list[Sequence]) -> None:
        """See the round's rows after their tokens are emitted, and before those that have finished leave.

        A scheduler may end further rows here by giving them a ``stop_reason``; none that is correct does.
        """
        return
