"""How often drafted tokens are accepted: per row, leaning on the whole run where a row has said little."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

PRIOR_RATE, PRIOR_TRIALS = 0.7, 12.0  # what a run is believed to accept before its first round
RUN_MEMORY, ROW_MEMORY = 512.0, 64.0  # trials that an estimate remembers; older ones fade
ROW_TRUST = 8.0  # trials of a row of its own that weigh as much as the run's


@dataclass(slots=True)
class _Counts:
    accepted: float = 0.0
    trials: float = 0.0

    def add(self, accepted: int, trials: int, memory: float) -> None:
        fade = max(1 - trials / memory, 0.0)
        self.accepted = self.accepted * fade + accepted
        self.trials = self.trials * fade + trials


class Acceptance:
    """Estimates of the chance that a drafted token is accepted if those before it are.

    A round that drafts g tokens and accepts a of them has made a + 1 trials, or g if all were accepted: what stands
    behind a rejected token was never tried.
    """

    def __init__(self) -> None:
        self._run = _Counts(PRIOR_RATE * PRIOR_TRIALS, PRIOR_TRIALS)
        self._rows: dict[int, _Counts] = {}

    def observe(self, row: int, num_drafted: int, num_accepted: int) -> None:
        """Count one round of one row."""
        trials = min(num_accepted + 1, num_drafted)
        if trials:
            self._run.add(num_accepted, trials, RUN_MEMORY)
            self._rows.setdefault(row, _Counts()).add(num_accepted, trials, ROW_MEMORY)

    def forget(self, row: int) -> None:
        """Drop a finished row."""
        self._rows.pop(row, None)

    def rate(self, row: int) -> float:
        """The estimate for a row: the mean, and as long as little is known the benefit of the doubt (one deviation)."""
        mean = self._run.accepted / self._run.trials
        run = min(mean + sqrt(mean * (1 - mean) / self._run.trials), 1.0)
        own = self._rows.get(row)
        return run if own is None else (own.accepted + ROW_TRUST * run) / (own.trials + ROW_TRUST)
