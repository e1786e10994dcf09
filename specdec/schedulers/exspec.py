"""EXSPEC: a sliding window over the pool, in which rows of equal length run together without realignment.

Idea: rows of one length need no padding, so a batch of them is a plain concatenation. The window (larger than the
batch) is scanned for ``batch`` rows of equal length; if there are none, any rows run, realigned as in EQSPEC.
Finished rows leave and the window is refilled.
Cost: the scan, and a regrouping of KV whenever the rows of the batch change.
Source: Zhang et al. 2025, arXiv 2510.22876. With window = batch it is EQSPEC with refilled slots.
"""

from __future__ import annotations

from specdec.errors import ConfigError
from specdec.schedulers.base import Scheduler
from specdec.sequence import Sequence, SequencePool


class ExspecScheduler(Scheduler):
    """Same-length groups from a window of ``window`` rows; oldest rows first wherever there is a choice."""

    def __init__(self, batch: int, window: int) -> None:
        if window < batch:
            raise ConfigError(f"batching.window={window} is smaller than batch={batch}: it must be at least the batch")
        self.batch = batch
        self.window = window

    def select(self, pool: SequencePool) -> list[Sequence]:
        """``batch`` rows of equal length if the window holds them, else its oldest rows."""
        pool.activate(self.window - len(pool.active))
        groups: dict[int, list[Sequence]] = {}
        for row in pool.active:
            group = groups.setdefault(row.length, [])
            group.append(row)
            if len(group) == self.batch:
                return group
        return pool.active[: self.batch]
