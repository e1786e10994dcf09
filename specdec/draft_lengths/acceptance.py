"""How often drafted tokens are accepted: per row, leaning on the whole run where a row has said little."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

PRIOR_RATE, PRIOR_TRIALS = 0.7, 12.0  # what a run is believed to accept before its first round
BELIEVED_TRIALS = 96.0  # that what was seen before a run weighs, at most
RUN_MEMORY, ROW_MEMORY = 512.0, 64.0  # trials that an estimate remembers; older ones fade
ROW_TRUST = 16.0  # trials of a row of its own that weigh as much as the run's
PLACE_TRUST = 16.0  # trials at a place of the draft that weigh as much as the place before it


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
    behind a rejected token was never tried. Later places of a draft are accepted more often than the first, given that
    all before them were: a draft that has come so far is in easy text. So the chance depends on the place too.
    """

    def __init__(self) -> None:
        self._run = _Counts(PRIOR_RATE * PRIOR_TRIALS, PRIOR_TRIALS)
        self._rows: dict[int, _Counts] = {}
        self._places: list[_Counts] = []

    def believe(self, tried: list[int], accepted: list[int]) -> None:
        """Begin with what short runs before this one have seen, by place of the draft, instead of with a guess.

        Raises:
            ValueError: nothing was tried.
        """
        if not sum(tried):
            raise ValueError("no drafted token was tried")
        rate, trials = sum(accepted) / sum(tried), min(sum(tried), BELIEVED_TRIALS)
        self._run = _Counts(rate * trials, trials)
        weights = [min(count, BELIEVED_TRIALS) for count in tried]
        self._places = [_Counts(a / t * w, w) for a, t, w in zip(accepted, tried, weights, strict=True) if t]

    def observe(self, row: int, num_drafted: int, num_accepted: int) -> None:
        """Count one round of one row."""
        trials = min(num_accepted + 1, num_drafted)
        if trials:
            self._run.add(num_accepted, trials, RUN_MEMORY)
            self._rows.setdefault(row, _Counts()).add(num_accepted, trials, ROW_MEMORY)
        self._places += [_Counts() for _ in range(trials - len(self._places))]
        for place in range(trials):
            self._places[place].add(int(place < num_accepted), 1, RUN_MEMORY)

    def forget(self, row: int) -> None:
        """Drop a finished row."""
        self._rows.pop(row, None)

    def rate(self, row: int) -> float:
        """The estimate for a row: the mean, and as long as little is known the benefit of the doubt (one deviation)."""
        mean = self._run.accepted / self._run.trials
        run = min(mean + sqrt(mean * (1 - mean) / self._run.trials), 1.0)
        own = self._rows.get(row)
        return run if own is None else (own.accepted + ROW_TRUST * run) / (own.trials + ROW_TRUST)

    def chances(self, row: int, length: int) -> list[float]:
        """For each place of a draft the chance that its token is accepted, if those before it are.

        The row's rate, with its rejections spread over the places as those of the whole run are:
        1 - chance(place) = (1 - rate) (1 - run's rate at the place) / (1 - run's rate).
        """
        mean, own = self._run.accepted / self._run.trials, self.rate(row)
        chances, at_place = [], mean
        for place in range(length):
            if place < len(self._places):
                counts = self._places[place]
                at_place = (counts.accepted + PLACE_TRUST * at_place) / (counts.trials + PLACE_TRUST)
            chances.append(max(1 - (1 - own) * (1 - at_place) / max(1 - mean, 1e-6), 0.0))
        return chances
