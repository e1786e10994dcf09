"""The arrival queue: holds rows until their arrival time, then moves them into the engine's pool."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable

from specdec.core.clock import Clock
from specdec.core.round import Round
from specdec.core.sequence import Sequence, SequencePool
from specdec.schedulers.order import BatchingPolicy

FollowUp = Callable[[Sequence], Sequence | None]


class ArrivalQueue:
    """Moves arrived rows into the pool in the batching policy's order, and adds the follow-ups of finished rows.

    Args:
        rows: each with its arrival time (``arrived_s``, in the clock's seconds).
        follow_up: makes the row that follows a finished one, with its arrival time; None ends the conversation.
    """

    def __init__(self, rows: Iterable[Sequence], policy: BatchingPolicy, clock: Clock, follow_up: FollowUp) -> None:
        self.rows: list[Sequence] = []
        self._later: list[tuple[float, int, Sequence]] = []
        self._policy = policy
        self._clock = clock
        self._follow_up = follow_up
        for row in rows:
            self._push(row)

    def feed(self, pool: SequencePool) -> bool:
        """Admit arrived rows to the pool, waiting for the next one if the pool is empty. False: no rows are left."""
        if not self._later:
            return not pool.done
        now, newcomers = self._clock.now(), []
        if pool.done:
            self._clock.wait_until(self._later[0][0])
            now = max(now, self._later[0][0])  # the clock may round to just before the arrival
        while self._later and self._later[0][0] <= now:
            newcomers.append(heapq.heappop(self._later)[2])
        if newcomers:
            pool.waiting = deque(self._policy.order([*pool.waiting, *newcomers]))
        return not pool.done

    def observe(self, outcome: Round) -> None:
        """Queue the follow-ups of the round's finished rows."""
        for row in outcome.finished:
            if (after := self._follow_up(row)) is not None:
                self._push(after)

    def _push(self, row: Sequence) -> None:
        self.rows.append(row)
        heapq.heappush(self._later, (row.arrived_s, row.index, row))
