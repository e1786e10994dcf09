"""The Scheduler contract."""

from __future__ import annotations

from abc import ABC, abstractmethod

from specdec.core.sequence import Sequence, SequencePool


class Scheduler(ABC):
    """Picks the rows of the next round; moves rows from waiting to active, never out of the pool.

    A plug-in's constructor gets by position ``batch``, the most rows of a round, and ``window``, the rows that the
    batching policy allows in flight; its settings by keyword. One that keeps more than ``batch`` rows in flight says
    so where it is registered (``windowed``, see `specdec.registry.Entry`).
    """

    prefill_share: float = 1.0
    """Share of the time that reading newcomers' prompts may take from rows that decode; 1: prompts are read whole."""

    groups_lengths: bool = False
    """Claims that rows of equal length run together: whenever at least ``batch`` active rows have the same length, the
    round is ``batch`` rows of one length. Rounds in which ``max_wait_rounds`` forces rows to run are exempt. What is
    claimed here is checked by the conformance kit; nothing else depends on it."""

    max_wait_rounds: int | None = None
    """Claims that no active row is passed over for more consecutive rounds than this; None claims nothing. The claim
    may be made per instance, in ``__init__``, and is checked like ``groups_lengths``."""

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
