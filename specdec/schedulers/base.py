"""The Scheduler contract."""

from __future__ import annotations

from abc import ABC, abstractmethod

from specdec.core.sequence import Sequence, SequencePool

__all__ = ["Scheduler", "Sequence", "SequencePool"]


class Scheduler(ABC):
    """Picks the rows of the next round. It may activate waiting rows and never removes rows from the pool.

    A plug-in's constructor gets by position ``batch``, the most rows of a round, and ``window``, the rows that the
    batching policy allows in flight; its settings by keyword. One that keeps more than ``batch`` rows in flight is
    registered as ``windowed`` (see `specdec.registry.Entry`).
    """

    prefill_share: float = 1.0
    """Share of the time that prefill may take from decoding rows; at 1, prompts are prefilled whole."""

    groups_lengths: bool = False
    """Claims that whenever at least ``batch`` active rows have the same length, the round is ``batch`` rows of one
    length, except in rounds in which ``max_wait_rounds`` forces rows to run. Only the conformance kit reads the claim,
    to check it."""

    max_wait_rounds: int | None = None
    """Claims that no active row waits for more consecutive rounds than this; None claims nothing. It may be set per
    instance, in ``__init__``, and is checked like ``groups_lengths``."""

    @abstractmethod
    def select(self, pool: SequencePool) -> list[Sequence]:
        """Unfinished rows of the next round, at least one while the pool is not done.

        Waiting rows are activated through ``pool.activate``. The engine prefills them; a row whose prefill is not
        complete skips the round.
        """

    def end_round(self, rows: list[Sequence]) -> None:
        """Called after the round's tokens are emitted and before finished rows leave the pool.

        A scheduler may end further rows by setting their ``stop_reason``. That truncates them: exact schedulers do not.
        """
        return
