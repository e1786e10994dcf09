"""Lockstep batches as in DSD: the batch ends when its fastest row is done. Known incorrect.

Idea: the published loop has one stop condition for the batch and stops when one row has its tokens, which truncates the
others. ``stop_with_fastest=false`` makes it static batching, which is exact.
Source: Yan, Agarwal, Venkataraman 2024, arXiv 2402.01528; described in arXiv 2510.22876.
"""

from __future__ import annotations

from specdec.core.sequence import Sequence, SequencePool
from specdec.schedulers.base import Scheduler


class LockstepScheduler(Scheduler):
    """Runs ``batch`` rows at a time; all end with the first."""

    def __init__(self, batch: int, window: int, *, stop_with_fastest: bool = True) -> None:
        self.batch = batch
        self.stop_with_fastest = stop_with_fastest

    def select(self, pool: SequencePool) -> list[Sequence]:
        if not pool.active:
            pool.activate(self.batch)
        return list(pool.active)

    def end_round(self, rows: list[Sequence]) -> None:
        if self.stop_with_fastest and any(row.finished for row in rows):
            for row in rows:
                row.stop_reason = row.stop_reason or "truncated"
