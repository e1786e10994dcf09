"""The queue before the engine: rows wait here until their time has come. The engine sees only the pool."""

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
    """Moves rows into the pool when they arrive, in the batching policy's order, and makes the rows that follow them.

    Args:
        rows: with the moments at which they arrive (``arrived_s``, on the clock's scale).
        follow_up: the row that a finished one leads to, with the moment at which it arrives, if any.
    """

    def __init__(self, rows: Iterable[Sequence], policy: BatchingPolicy, clock: Clock, follow_up: FollowUp) -> None:
        self.rows: list[Sequence] = []
        self._later: list[tuple[float, int, Sequence]] = []
        self._policy = policy
        self._clock = clock
        self._follow_up = follow_up
        for row in rows:
            self._expect(row)

    def feed(self, pool: SequencePool) -> bool:
        """Let in whoever has arrived, after a wait for the next one if the pool is empty. False: nobody is left."""
        if not self._later:
            return not pool.done
        now, newcomers = self._clock.now(), []
        if pool.done:
            self._clock.wait_until(self._later[0][0])
            now = max(now, self._later[0][0])  # what was waited for has come, however the clock rounds
        while self._later and self._later[0][0] <= now:
            newcomers.append(heapq.heappop(self._later)[2])
        if newcomers:
            pool.waiting = deque(self._policy.order([*pool.waiting, *newcomers]))
        return not pool.done

    def observe(self, outcome: Round) -> None:
        """Expect the rows that the finished ones lead to."""
        for row in outcome.finished:
            if (after := self._follow_up(row)) is not None:
                self._expect(after)

    def _expect(self, row: Sequence) -> None:
        self.rows.append(row)
        heapq.heappush(self._later, (row.arrived_s, row.index, row))
