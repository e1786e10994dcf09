"""A scheduler in one file: more requests in flight than fit in a batch, served in turns.

Every request makes progress within a known number of rounds, however long the others are. After

    pip install ./experiments/plugin_scheduler
    python -m specdec.conformance scheduler=round_robin    # proves it, the bound on waiting included
    python run.py scheduler=round_robin scheduler.turn_rounds=1,8 batching.window=16 -m

it appears beside the built-in schedulers in `--help`, in sweeps and in the conformance kit.
"""

from __future__ import annotations

from typing import Annotated

from specdec import register
from specdec.errors import ConfigError
from specdec.schedulers.base import Scheduler, Sequence, SequencePool


@register("scheduler", "round_robin", windowed=True)
class RoundRobinScheduler(Scheduler):
    """Runs ``batch`` rows for some rounds, then those that have waited longest."""

    def __init__(
        self,
        batch: int,
        window: int,
        *,  # every parameter from here on is a setting, with its help text: scheduler.turn_rounds=8
        turn_rounds: Annotated[int, "rounds that a row runs before the others' turn"] = 4,
    ) -> None:
        if turn_rounds < 1:
            raise ConfigError(f"scheduler.turn_rounds={turn_rounds}: it must be at least 1")
        self.batch, self.window = batch, max(window, batch)
        self.turn_rounds = turn_rounds
        # A row has at most window - 1 rows before it, and every turn runs `batch` of them.
        self.max_wait_rounds = turn_rounds * ((self.window - 1) // batch)
        self._rounds_left = 0
        self._running: list[Sequence] = []
        self._queue: list[Sequence] = []  # the other active rows, longest wait first

    def select(self, pool: SequencePool) -> list[Sequence]:
        self._running = [row for row in self._running if not row.finished]
        if not self._rounds_left:
            self._queue += self._running
            self._running, self._rounds_left = [], self.turn_rounds
        self._queue += pool.activate(self.window - len(pool.active))
        free = self.batch - len(self._running)
        self._running, self._queue = self._running + self._queue[:free], self._queue[free:]
        self._rounds_left -= 1
        return list(self._running)
