"""Acceptance estimates: the chance that a drafted token is accepted if those before it are, per row."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt

PRIOR_RATE, PRIOR_TRIALS = 0.7, 12.0  # the run's estimate before its first round, and the trials that it counts as
PROFILE_TRIALS = 96.0  # a profile counts as at most this many trials
MEMORY = 512.0  # trials of the run after which older ones are forgotten
PLACE_TRUST = 16.0  # the run's estimate counts as this many trials of a place
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
        self._places: list[_Counts] | None = None

    def set_prior(self, num_tried: int, num_accepted: int) -> None:
        """Start from a profile's counts instead of the prior."""
        trials = min(num_tried, PROFILE_TRIALS)
        self._run = _Counts(trials * num_accepted / num_tried, trials)

    def set_places(self, tried: list[int], accepted: list[int]) -> None:
        """Tell places of a draft apart from now on: in a tree, acceptance depends on how many children a node has."""
        shares = [min(1.0, PROFILE_TRIALS / max(trials, 1)) for trials in tried]
        self._places = [
            _Counts(share * right, share * trials) for share, right, trials in zip(shares, accepted, tried, strict=True)
        ]

    def relative(self, place: int) -> float:
        """The acceptance at a place of a draft, as a multiple of that of all places."""
        if self._places is None or place >= len(self._places):
            return 1.0
        mean, own = self._run.accepted / self._run.trials, self._places[place]
        return (own.accepted + PLACE_TRUST * mean) / ((own.trials + PLACE_TRUST) * mean) if mean else 1.0

    def observe(self, row: int, depth: int, num_accepted: float) -> None:
        """Count one round of one row; an expected number counts as well as a number."""
        trials = min(num_accepted + 1, depth)
        kept = max(1 - trials / MEMORY, 0.0)
        self._run = _Counts(kept * self._run.accepted + num_accepted, kept * self._run.trials + trials)
        for place, own in enumerate((self._places or [])[: ceil(trials)]):
            own.accepted = (1 - 1 / MEMORY) * own.accepted + min(max(num_accepted - place, 0), 1)
            own.trials = (1 - 1 / MEMORY) * own.trials + min(trials - place, 1)
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
