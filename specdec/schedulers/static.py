"""Static batching: a batch is filled once and runs until its last row ends."""

from __future__ import annotations

from specdec.core.sequence import Sequence, SequencePool
from specdec.schedulers.base import Scheduler


class StaticScheduler(Scheduler):
    """Runs ``batch`` rows at a time. A finished row leaves at once; its place stays empty until the batch is done."""

    def __init__(self, batch: int, window: int) -> None:
        self.batch = batch

    def select(self, pool: SequencePool) -> list[Sequence]:
        if not pool.active:
            pool.activate(self.batch)
        return list(pool.active)
