"""Round costs: the median seconds of rounds by batch size and drafted steps, and estimates for shapes not yet measured.

A round costs a plain round times 1 + what its draft adds. Both are linear between measured shapes; the added part is
taken from the nearest batch size and is proportional to the steps beyond the longest draft measured there.
A profile counts as a few rounds of each shape. Only its proportions count, because the machine may have become slower
or faster since.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from math import log2
from statistics import median, median_low

PROFILE_ROUNDS = 2  # a profile counts as this many rounds of each shape
WINDOW = 15  # rounds of a shape that its median is taken over

Seconds = dict[tuple[int, int], float]
"""Seconds of a round by its number of rows and drafted steps."""


class RoundCosts:
    """Seconds of a round by its number of rows and drafted steps.

    Attributes:
        scale: how much slower rounds are in this run than in the profile.
    """

    def __init__(self) -> None:
        self.scale = 1.0
        self._profile: Seconds = {}
        self._measured: dict[tuple[int, int], deque[float]] = {}
        self._medians: Seconds = {}  # of the measured rounds
        self._expected: Seconds = {}  # by the profile, of the measured shapes
        self._known: Seconds = {}
        self._estimates: Seconds = {}  # made since the last round

    def set_prior(self, num_rows: int, num_steps: int, seconds: float) -> None:
        """Add a shape of the profile."""
        self._estimates.clear()
        self._profile[num_rows, num_steps] = self._known[num_rows, num_steps] = seconds

    def observe(self, num_rows: int, num_steps: int, seconds: float) -> None:
        """Add a round of ``num_rows`` rows, the longest draft of which had ``num_steps`` tokens."""
        self._estimates.clear()
        shape = num_rows, num_steps
        self._measured.setdefault(shape, deque(maxlen=WINDOW)).append(seconds)
        # median_low: of two rounds the faster one, because disturbances only slow rounds down.
        self._medians[shape] = median_low(self._measured[shape])
        if not self._profile:
            self._known[shape] = self._medians[shape]
            return
        if shape not in self._expected:
            self._expected[shape] = _estimate(self._profile, *shape)
        self.scale = median(seconds / self._expected[shape] for shape, seconds in self._medians.items())
        self._known = {shape: self.scale * seconds for shape, seconds in self._profile.items()}
        for shape, rounds in self._measured.items():
            self._known[shape] = median_low([*rounds, *PROFILE_ROUNDS * [self.scale * self._expected[shape]]])

    @property
    def explored(self) -> bool:
        """Whether rounds with and without a draft are known, so that estimates can be made."""
        return {steps > 0 for _, steps in self._known} == {True, False}

    def num_rounds(self, drafted: bool, least_rows: float) -> int:
        """Remembered rounds of this run with at least ``least_rows`` rows."""
        sizes = self._measured.items()
        return sum(len(rounds) for (rows, steps), rounds in sizes if rows >= least_rows and (steps > 0) == drafted)

    def estimate(self, num_rows: int, num_steps: int) -> float:
        """Seconds that such a round takes.

        Raises:
            ValueError: no plain round is known, or a drafting round is asked for and none is known.
        """
        shape = num_rows, num_steps
        if shape not in self._estimates:
            self._estimates[shape] = _estimate(self._known, *shape)
        return self._estimates[shape]


def _estimate(known: Seconds, num_rows: int, num_steps: int) -> float:
    if (num_rows, num_steps) in known:
        return known[num_rows, num_steps]
    plain = {rows: seconds for (rows, steps), seconds in known.items() if steps == 0}
    if not plain:
        raise ValueError("no plain round was measured")
    plain_s = interpolated(plain, num_rows)
    return plain_s * (1 + _added(known, plain, num_rows, num_steps)) if num_steps else plain_s


def _added(known: Seconds, plain: dict[int, float], num_rows: int, num_steps: int) -> float:
    """What drafting, and verifying the draft, adds to a round, as a share of a plain round."""
    sizes = {rows for rows, steps in known if steps}
    if not sizes:
        raise ValueError("no round with a draft was measured")
    size = min(sizes, key=lambda rows: (abs(log2(rows / num_rows)), rows))
    plain_s = interpolated(plain, size)
    added = {steps: seconds / plain_s - 1 for (rows, steps), seconds in known.items() if rows == size and steps}
    share = interpolated({0: 0.0, **added}, num_steps) * max(num_steps / max(added), 1)
    return max(share, 0.0)  # a plain round may have been disturbed


def interpolated(known: dict[int, float], place: int) -> float:
    """The value at ``place``, linear between the nearest known places and constant beyond them."""
    places = sorted(known)
    i = bisect_left(places, place)
    if i == len(places) or places[i] == place or i == 0:
        return known[places[min(i, len(places) - 1)]]
    below, above = places[i - 1], places[i]
    return known[below] + (known[above] - known[below]) * (place - below) / (above - below)
