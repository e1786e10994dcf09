"""A scheduler that checks another one: every choice and the pool after it are compared with the contract."""

from __future__ import annotations

from collections import Counter

from specdec.conformance.promises import Broken
from specdec.core.sequence import Sequence, SequencePool
from specdec.schedulers.base import Scheduler


class CheckedScheduler(Scheduler):
    """Chooses what ``inner`` chooses, and notes every broken promise."""

    def __init__(self, inner: Scheduler, batch: int, notes: list[Broken]) -> None:
        self.inner = inner
        self.batch = batch
        self.notes = notes
        self.prefill_share = inner.prefill_share
        self.groups_lengths, self.max_wait_rounds = inner.groups_lengths, inner.max_wait_rounds
        self._waited: dict[int, int] = {}  # by active row: rounds since it ran

    def select(self, pool: SequencePool) -> list[Sequence]:
        all_rows = _all_rows(pool)
        rows = self.inner.select(pool)
        names = [row.index for row in rows]
        if not rows or len(rows) > self.batch or len(set(names)) < len(names):
            self.notes.append(Broken("choice", f"rows {names} for a batch of {self.batch}"))
        if idle := [row.index for row in rows if row.finished or not any(row is other for other in pool.active)]:
            self.notes.append(Broken("choice", f"rows {idle} are finished or not active"))
        if _all_rows(pool) != all_rows:
            self.notes.append(Broken("pool", f"rows {all_rows} became {_all_rows(pool)}"))
        if self.groups_lengths:
            self._check_grouping(rows, pool.active)
        self._check_waiting(rows, pool.active)
        return rows

    def end_round(self, rows: list[Sequence]) -> None:
        before = [row.stop_reason for row in rows]
        self.inner.end_round(rows)
        if ended := [row.index for row, reason in zip(rows, before, strict=True) if row.stop_reason != reason]:
            self.notes.append(Broken("progress", f"rows {ended} are ended by the scheduler"))

    def _check_grouping(self, rows: list[Sequence], active: list[Sequence]) -> None:
        count_of = Counter(row.length for row in active)
        full = sorted(length for length, count in count_of.items() if count >= self.batch)
        grouped = len(rows) == self.batch and len({row.length for row in rows}) == 1
        if full and not grouped and not self._some_are_due(active):
            lengths = {row.index: row.length for row in rows}
            detail = f"rows of lengths {lengths} run, while {count_of[full[0]]} active rows have length {full[0]}"
            self.notes.append(Broken("grouping", f"{detail} and {self.batch} fill a batch"))

    def _some_are_due(self, active: list[Sequence]) -> bool:
        """Whether this round must run certain rows for all rows to keep the bound on waiting.

        It must if, for some k, more rows are due within the next k + 1 rounds than the k rounds after this one can run.
        """
        if self.max_wait_rounds is None:
            return False
        slack = sorted(self.max_wait_rounds - self._waited.get(row.index, 0) for row in active)
        return any(place + 1 > left * self.batch for place, left in enumerate(slack))

    def _check_waiting(self, rows: list[Sequence], active: list[Sequence]) -> None:
        running = {row.index for row in rows}
        waiting = [row.index for row in active if row.index not in running]
        self._waited = {row: self._waited.get(row, 0) + 1 for row in waiting}
        longest = max(self._waited.values(), default=0)
        if self.max_wait_rounds is not None and longest > self.max_wait_rounds:
            late = [row for row, rounds in self._waited.items() if rounds == longest]
            detail = f"rows {late} wait for {longest} rounds, of at most {self.max_wait_rounds}"
            self.notes.append(Broken("waiting", detail))


def _all_rows(pool: SequencePool) -> list[int]:
    return sorted(row.index for row in [*pool.waiting, *pool.active, *pool.finished])
