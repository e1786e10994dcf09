"""Step metrics: figures since the last report and where the time went, logged about once a second."""

from __future__ import annotations

import time

from specdec.core.clock import STAGES, Clock
from specdec.core.metrics import Tally, ratio
from specdec.core.round import Round
from specdec.models.memory import PeakMemory
from specdec.run.loggers.base import Logger

EVERY_S = 1.0


class StepMeter:
    """Logs figures of the rounds since its last report; pass its ``observe`` to the decoding loop.

    Args:
        memory: source of the peak memory so far; None leaves it out.
        every_s: seconds between two reports, EVERY_S if not given; rounds after the last one are in the summary only.
    """

    def __init__(self, logger: Logger, memory: PeakMemory | None = None, every_s: float | None = None) -> None:
        self._logger = logger
        self._memory = memory
        self._every_s = EVERY_S if every_s is None else every_s
        self._num_rounds = 0
        self._num_finished = 0
        self._reported_s = time.monotonic()
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._tally = Tally()

    def observe(self, outcome: Round, clock: Clock) -> None:
        """Count one round, and report if ``every_s`` have passed."""
        self._tally.add(outcome)
        self._num_rounds += 1
        self._num_finished += len(outcome.finished)
        now = time.monotonic()
        if now - self._reported_s >= self._every_s:
            self._logger.round(self._num_rounds, self._metrics(clock))
            self._reported_s, self._seconds, self._tally = now, dict(clock.seconds), Tally()

    def _metrics(self, clock: Clock) -> dict[str, float]:
        spent = {stage: clock.seconds[stage] - self._seconds.get(stage, 0.0) for stage in clock.seconds}
        total = sum(spent.values())
        counts = self._tally.counts()
        figures = {
            "tokens_per_s": ratio(self._tally.num_output_tokens, total),
            **{name: counts[name] for name in ("acceptance_rate", "mean_acceptance_length", "grouping_rate")},
            "num_finished": self._num_finished,
            **{f"time/{stage}_share": ratio(seconds, total) for stage, seconds in spent.items()},
        }
        if self._memory is not None:
            self._memory.sample()
            figures["peak_memory_bytes"] = self._memory.bytes
        return {name: float(value) for name, value in figures.items() if value is not None}
