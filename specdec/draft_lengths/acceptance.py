"""Acceptance estimates: the chance that a drafted token is accepted if those before it are, per row."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

PRIOR_RATE, PRIOR_TRIALS = 0.7, 12.0  # the run's estimate before its first round, and the trials that it counts as
PROFILE_TRIALS = 96.0  # a profile counts as at most this many trials
MEMORY = 512.0  # trials of the run after which older ones are forgotten
ROW_TRUST = 16.0  # the run's estimate counts as this many trials of a row


@dataclass(slots=True)
class _Counts:
    accepted: float = 0.0
    trials: float = 0.0


class Acceptance:
    """Acceptance rates of rows, each shrunk towards the rate of the whole run.

    A round whose draft is g tokens deep and that accepts a of them makes a + 1 trials, or g if all are accepted: tokens
    after the first rejected one are not tried.
    """

    def __init__(self) -> None:
        self._run = _Counts(PRIOR_RATE * PRIOR_TRIALS, PRIOR_TRIALS)
        self._rows: dict[int, _Counts] = {}

    def set_prior(self, num_tried: int, num_accepted: int) -> None:
        """Start from a profile's counts instead of the prior."""
        trials = min(num_tried, PROFILE_TRIALS)
        self._run = _Counts(trials * num_accepted / num_tried, trials)

    def observe(self, row: int, depth: int, num_accepted: int) -> None:
        """Count one round of one row."""
        trials = min(num_accepted + 1, depth)
        kept = max(1 - trials / MEMORY, 0.0)
        self._run = _Counts(kept * self._run.accepted + num_accepted, kept * self._run.trials + trials)
        own = self._rows.setdefault(row, _Counts())
        own.accepted += num_accepted
        own.trials += trials

    def forget(self, row: int) -> None:
        """Drop a finished row."""
        self._rows.pop(row, None)

    def rate(self, row: int) -> float:
        """A row's estimate. The run's part in it is one standard error above its mean, so that drafting is tried."""
        mean = self._run.accepted / self._run.trials
        run = min(mean + sqrt(mean * (1 - mean) / self._run.trials), 1.0)
        own = self._rows.get(row, _Counts())
        return (own.accepted + ROW_TRUST * run) / (own.trials + ROW_TRUST)
