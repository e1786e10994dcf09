"""Lockstep batches as DSD runs them: when the fastest row is done, the batch ends. Known incorrect.

Idea: the published loop counts the rounds of the batch, not of its rows, and stops when one row has its tokens; the
others are truncated there. ``stop_with_fastest=false`` makes it static batching, which is exact.
Source: Yan, Agarwal, Venkataraman 2024, arXiv 2402.01528; described in arXiv 2510.22876.
"""

from __future__ import annotations

from specdec.core.sequence import Sequence, SequencePool
from specdec.schedulers.base import Scheduler


class LockstepScheduler(Scheduler):
    """``batch`` rows at a time, all of which end with the first."""

    def __init__(self, batch: int, window: int, *, stop_with_fastest: bool = True) -> None:
        self.batch = batch
        self.stop_with_fastest = stop_with_fastest

    def select(self, pool: SequencePool) -> list[Sequence]:
        """All unfinished rows of the current batch, or the next batch."""
        if not pool.active:
            pool.activate(self.batch)
        return list(pool.active)

    def end_round(self, rows: list[Sequence]) -> None:
        """Truncate the batch once one of its rows has finished."""
        if self.stop_with_fastest and any(row.finished for row in rows):
            for row in rows:
                row.stop_reason = row.stop_reason or "truncated"
