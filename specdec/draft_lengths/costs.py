"""What rounds cost, measured while decoding: medians of what was measured, and a model where nothing was.

The model is a plain round's cost times 1 + what the draft adds: a line in the drafted steps between the nearest lengths
that are known, at the nearest batch size. Between two known batch sizes a plain round's cost is linear; beyond them
half of it is taken as fixed and half as proportional to the batch, until that size is measured too.
What a profile says counts as a few rounds, until more were measured here; of it only the proportions count, because the
machine may have been slower or faster then.
"""

from __future__ import annotations

from collections import deque
from math import log2
from statistics import median, median_low

BELIEVED_ROUNDS = 2  # that a profile's figure counts as
WINDOW = 15  # last measurements of a bucket that its median is taken of
MIN_SLOPE = 0.01  # of a plain round, that one drafted step costs at least
FIRST_STEP_SHARE = 0.3  # of a draft's cost, that comes with its first step, as long as one length only is known

Seconds = dict[tuple[int, int], float]
"""Of a round, by its number of rows and of drafted steps."""


class RoundCosts:
    """Seconds of a round by its number of rows and of drafted steps.

    Attributes:
        scale: how much slower rounds are here than where they were believed from.
    """

    def __init__(self) -> None:
        self.scale = 1.0
        self._believed: Seconds = {}
        self._as_believed: Seconds = {}  # what the profile alone says of what was measured
        self._measured: dict[tuple[int, int], deque[float]] = {}
        self._here: Seconds = {}  # medians of what was measured
        self._both: Seconds = {}  # the same with what is believed among it
        self._known: Seconds = {}  # these, and what is believed of the others

    def believe(self, num_rows: int, num_steps: int, seconds: float) -> None:
        """Such a round took so long before this run."""
        self._believed[num_rows, num_steps] = seconds
        self._known = {**self._believed, **self._both}

    def observe(self, num_rows: int, num_steps: int, seconds: float) -> None:
        """A round of ``num_rows`` rows, the longest draft of which had ``num_steps`` tokens, took so long."""
        key = (num_rows, num_steps)
        bucket = self._measured.setdefault(key, deque(maxlen=WINDOW))
        bucket.append(seconds)
        self._here[key] = median_low(bucket)  # of two the smaller: what disturbs a measurement makes it longer
        if not self._believed:
            self._known[key] = self._here[key]
            return
        if key not in self._as_believed:
            self._as_believed[key] = _estimate(self._believed, *key)
        self.scale = median(here / self._as_believed[key] for key, here in self._here.items())
        # A slow round or two must not end what is known to pay.
        self._both[key] = median_low([*bucket, *BELIEVED_ROUNDS * [self.scale * self._as_believed[key]]])
        self._known = {**{key: self.scale * seconds for key, seconds in self._believed.items()}, **self._both}

    def num_measured(self, num_rows: int, num_steps: int) -> int:
        """Measurements of this run that the estimate of this bucket stands on."""
        return len(self._measured.get((num_rows, num_steps), ()))

    def sure(self, num_rows: int, num_steps: int) -> bool:
        """Whether measurements of this run decide the estimate of this bucket."""
        return self.num_measured(num_rows, num_steps) > (BELIEVED_ROUNDS if self._believed else 0)

    def num_rounds(self, drafted: bool, least_rows: float) -> int:
        """Measurements of this run at all batch sizes from ``least_rows`` on."""
        sizes = self._measured.items()
        return sum(len(bucket) for (rows, steps), bucket in sizes if rows >= least_rows and (steps > 0) == drafted)

    @property
    def longest(self) -> int:
        """The most drafted steps of a round that was measured, here or before."""
        return max((steps for _, steps in self._known), default=0)

    def knows(self, drafted: bool) -> bool:
        """Whether any round with (or without) a draft was measured, here or before."""
        return any((steps > 0) == drafted for _, steps in self._known)

    def estimate(self, num_rows: int, num_steps: int) -> float:
        """Seconds that such a round takes.

        Raises:
            ValueError: no plain round was measured; or none with a draft, and that is what is asked for.
        """
        return _estimate(self._known, num_rows, num_steps)


def _estimate(known: Seconds, num_rows: int, num_steps: int) -> float:
    exact = known.get((num_rows, num_steps))
    if exact is not None:
        return exact
    plain_s = _plain(known, num_rows)
    return plain_s if num_steps == 0 else plain_s * (1 + _extra(known, num_rows, num_steps))


def _plain(known: Seconds, num_rows: int) -> float:
    sizes = sorted(rows for rows, steps in known if steps == 0)
    if not sizes:
        raise ValueError("no plain round was measured")
    below = max((rows for rows in sizes if rows <= num_rows), default=None)
    above = min((rows for rows in sizes if rows >= num_rows), default=None)
    if below is None or above is None:
        nearest = above if below is None else below
        assert nearest is not None
        return known[nearest, 0] * (0.5 + 0.5 * num_rows / nearest)
    low_s, high_s = known[below, 0], known[above, 0]
    return low_s if below == above else low_s + (high_s - low_s) * (num_rows - below) / (above - below)


def _extra(known: Seconds, num_rows: int, num_steps: int) -> float:
    """Cost of the drafted steps (drafting them, and their places in the verification) as a share of a plain round.

    Of the nearest batch size of which several lengths are known, if there is one. Through one length only, a part of
    the cost is taken as the first step's alone: if that is too hopeful, the first such round tells.
    """
    lengths: dict[int, list[int]] = {}
    for rows, steps in known:
        if steps:
            lengths.setdefault(rows, []).append(steps)
    if not lengths:
        raise ValueError("no round with a draft was measured")
    several = [rows for rows, of_size in lengths.items() if len(of_size) > 1]
    size = min(several or lengths, key=lambda rows: (abs(log2(rows / num_rows)), rows))
    plain_s = _plain(known, size)
    extras = {steps: known[size, steps] / plain_s - 1 for steps in lengths[size]}
    below = max((steps for steps in extras if steps <= num_steps), default=None)
    above = min((steps for steps in extras if steps >= num_steps), default=None)
    if below is not None and above is not None:
        share = (extras[above] - extras[below]) / max(above - below, 1)
        return max(extras[below] + share * (num_steps - below), MIN_SLOPE * num_steps)
    return max(_beyond(extras, num_steps), MIN_SLOPE * num_steps)


def _beyond(extras: dict[int, float], num_steps: int) -> float:
    """The same for a length beyond all that are known: along the line through the nearest two."""
    nearest = sorted(sorted(extras), key=lambda steps: abs(steps - num_steps))[:2]
    extra = extras[nearest[0]]
    slope = (1 - FIRST_STEP_SHARE) * extra / nearest[0]
    if len(nearest) == 2:
        line = (extras[nearest[1]] - extra) / (nearest[1] - nearest[0])
        slope = min(max(line, 0.0), extra / nearest[0])  # noise makes lines that fall, or begin below a plain round
    return extra + slope * (num_steps - nearest[0])
