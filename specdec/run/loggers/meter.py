"""Step metrics: what a run has done so far and where its time went, handed to the logger about once a second."""

from __future__ import annotations

import time

from specdec.core.clock import STAGES, Clock
from specdec.core.metrics import Tally, ratio
from specdec.core.round import Round
from specdec.models.memory import PeakMemory
from specdec.run.loggers.base import Logger

EVERY_S = 1.0


class StepMeter:
    """Pass its ``observe`` to the decoding loop; figures are those of the stretch since the last report.

    Args:
        memory: where the peak so far is read; None leaves it out.
        every_s: seconds between two reports, EVERY_S if not given; what is left at the end is in the summary.
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
        """Count one round, and report if it is time to."""
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
        figures = {
            "tokens_per_s": ratio(self._tally.num_output_tokens, total),
            "acceptance_rate": self._tally.acceptance_rate,
            "mean_acceptance_length": ratio(self._tally.num_output_tokens, self._tally.num_row_rounds),
            "grouping_rate": ratio(self._tally.num_same_length_batches, self._tally.num_verify_calls),
            "num_finished": self._num_finished,
            **{f"time/{stage}_share": ratio(seconds, total) for stage, seconds in spent.items()},
        }
        if self._memory is not None:
            self._memory.sample()
            figures["peak_memory_bytes"] = self._memory.bytes
        return {name: float(value) for name, value in figures.items() if value is not None}
