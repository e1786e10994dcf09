"""EXSPEC: a sliding window over the pool, in which rows of equal length run together without realignment.

Idea: rows of one length need no padding, so a batch of them is a plain concatenation. The window (larger than the
batch) is scanned for ``batch`` rows of equal length; if there are none, its oldest rows run, realigned as in EQSPEC.
Finished rows leave and the window is refilled.
Cost: the scan, and a regrouping of KV whenever the rows of the batch change. A row without partners waits as long as
other lengths form groups; ``max_wait_rounds`` bounds the wait, at the cost of more realigned rounds.
Source: Zhang et al. 2025, arXiv 2510.22876, without the bound. With window = batch it is EQSPEC with refilled slots.
"""

from __future__ import annotations

from specdec.core.sequence import Sequence, SequencePool
from specdec.errors import ConfigError
from specdec.schedulers.base import Scheduler


class ExspecScheduler(Scheduler):
    """Runs same-length groups from a window of ``window`` rows; ties go to the oldest rows.

    Args:
        max_wait_rounds: a row that has waited this many rounds runs in the next one; None: no bound.
    """

    groups_lengths = True

    def __init__(self, batch: int, window: int, *, max_wait_rounds: int | None = None) -> None:
        if window < batch:
            raise ConfigError(f"batching.window={window} is smaller than batch={batch}: it must be at least the batch")
        least = -(-window // batch) - 1  # rounds that the last row of a full window waits if rows take turns
        if max_wait_rounds is not None and max_wait_rounds < least:
            raise ConfigError(
                f"scheduler.max_wait_rounds={max_wait_rounds} cannot be kept with batching.window={window} and "
                f"batch={batch}: set it to {least} or more, or batching.window={batch * (max_wait_rounds + 1)} or less"
            )
        self.batch = batch
        self.window = window
        self.max_wait_rounds = max_wait_rounds
        self._waited: dict[int, int] = {}  # by row of the window: rounds since it ran

    def select(self, pool: SequencePool) -> list[Sequence]:
        pool.activate(self.window - len(pool.active))
        due = self._due(pool.active)
        others = [row for row in pool.active if row not in due]
        chosen = self._group(due, others) or (due + others)[: self.batch]
        if self.max_wait_rounds is not None:
            running = {row.index for row in chosen}
            self._waited = {
                row.index: self._waited.get(row.index, 0) + 1 for row in pool.active if row.index not in running
            }
        return chosen

    def _group(self, due: list[Sequence], others: list[Sequence]) -> list[Sequence] | None:
        """The first ``batch`` rows of one length that include all of ``due``; None if there are none."""
        lengths = {row.length for row in due}
        if len(lengths) > 1:
            return None
        groups: dict[int, list[Sequence]] = {}
        for row in due + others:
            if lengths and row.length not in lengths:
                continue
            group = groups.setdefault(row.length, [])
            group.append(row)
            if len(group) == self.batch:
                return group
        return None

    def _due(self, rows: list[Sequence]) -> list[Sequence]:
        """The rows that must run now, longest waits first, so that every row runs before its deadline.

        Earliest deadline first: with ``batch`` places per round, all deadlines can be met if, for every k, at most
        (k + 1) x batch rows are due within the next k + 1 rounds. The fewest rows that keep this true run now.
        """
        if self.max_wait_rounds is None:
            return []
        longest = sorted(rows, key=lambda row: -self._waited.get(row.index, 0))
        slack = [self.max_wait_rounds - self._waited.get(row.index, 0) for row in longest]
        num_due = max((place + 1 - left * self.batch for place, left in enumerate(slack)), default=0)
        return longest[: max(num_due, 0)]
