"""Bugs in schedulers: in which rows run, and in what they claim beyond that."""

from __future__ import annotations

from mutations.planting import Patch, planted
from specdec.schedulers.continuous import ContinuousScheduler
from specdec.schedulers.exspec import ExspecScheduler
from specdec.schedulers.static import StaticScheduler

STATIC, CONTINUOUS, EXSPEC = "scheduler=static", "scheduler=continuous", "scheduler=exspec"


@planted(STATIC, "the last lone row is never chosen", "choice")
def last_row_never_chosen(patch: Patch):
    class Abandoning(StaticScheduler):
        def select(self, pool):
            rows = super().select(pool)
            return [] if len(rows) == 1 and not pool.waiting else rows

    return Abandoning


@planted(STATIC, "empty places are filled by running a row twice", "choice")
def row_run_twice(patch: Patch):
    class Repeating(StaticScheduler):
        def select(self, pool):
            rows = super().select(pool)
            return (rows + rows[:1])[: max(self.batch, len(rows))]

    return Repeating


@planted(CONTINUOUS, "one row too many is in flight once a row has finished", "choice")
def one_row_too_many(patch: Patch):
    class Generous(ContinuousScheduler):
        def select(self, pool):
            pool.activate(self.batch + bool(pool.finished) - len(pool.active))
            return list(pool.active)

    return Generous


@planted(CONTINUOUS, "a newcomer that finds no place is dropped", "pool")
def newcomer_dropped(patch: Patch):
    class Dropping(ContinuousScheduler):
        def select(self, pool):
            rows = super().select(pool)
            if len(pool.waiting) > 1 and pool.finished:
                pool.waiting.pop()
            return rows

    return Dropping


@planted(CONTINUOUS, "rows end when their neighbour meets a stop token", "progress", "decoding runs")
def stopped_with_a_neighbour(patch: Patch):
    class Stopping(ContinuousScheduler):
        def end_round(self, rows):
            if any(row.stop_reason == "stop" for row in rows):
                for row in rows:
                    row.stop_reason = row.stop_reason or "stop"

    return Stopping


@planted(EXSPEC, "lengths 2k and 2k + 1 are grouped together", "grouping")
def near_lengths_grouped(patch: Patch):
    class Near(ExspecScheduler):
        def _group(self, due, others):
            groups: dict[int, list] = {}
            for row in due + others:
                group = groups.setdefault(row.length // 2, [])
                group.append(row)
                if len(group) == self.batch:
                    return group
            return None

    return Near


@planted(EXSPEC, "only the first rows of the window are searched for partners", "grouping")
def window_not_searched(patch: Patch):
    class Short(ExspecScheduler):
        def _group(self, due, others):
            return super()._group(due, others[: self.batch + 1])

    return Short


@planted(EXSPEC, "a row without partners starves: the bound on waiting is not looked at", "waiting", max_wait_rounds=3)
def bound_not_kept(patch: Patch):
    class Starving(ExspecScheduler):
        def _due(self, rows):
            return []

    return Starving


@planted(EXSPEC, "rows are late by one round: waits are counted from the round after", "waiting", max_wait_rounds=3)
def bound_late_by_one(patch: Patch):
    class Late(ExspecScheduler):
        def _due(self, rows):
            self.max_wait_rounds += 1
            try:
                return super()._due(rows)
            finally:
                self.max_wait_rounds -= 1

    return Late


@planted(CONTINUOUS, "one row too many in batches of four and more", "choice")
def large_batches_overfilled(patch: Patch):
    class Overfilled(ContinuousScheduler):
        def select(self, pool):
            pool.activate(self.batch + (self.batch >= 4) - len(pool.active))
            return list(pool.active)

    return Overfilled
