"""Seconds of a round by its rows, drafted levels and verified tokens, from a profile measured before the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from specdec.budgets.slots import Floats
from specdec.draft_lengths.profile import Profile, Profiler, Trial


@dataclass(slots=True)
class RoundSeconds:
    """Linear between measured batch sizes and tokens per row, and beyond the most tokens measured.

    Only proportions count, so a machine that has become slower since changes nothing.

    Args:
        convex: take the lower convex hull over the tokens. A cost that rises steeply at first and slowly later would
            end an admission at its first token; and with a convex cost the first fall of the rate is its only one.
    """

    trials: dict[int, dict[int, Trial]]
    convex: bool = False
    _tables: dict[int, tuple[Floats, Floats]] = field(default_factory=dict)

    @classmethod
    def measured(cls, profiler: Profiler, batch: int, max_gamma: int, convex: bool) -> RoundSeconds:
        """From the profile of the pair on this device, which is measured now if there is none."""
        profile = Profile(profiler)
        profile.complete(batch, max_gamma)
        return cls(profile.of(batch, max_gamma), convex)

    def of(self, num_rows: int, num_levels: int, tokens_N: Floats) -> Floats:
        """(N): seconds of rounds that draft ``num_levels`` levels and verify so many drafted tokens per row."""
        draft_s = self._between_sizes(num_rows, partial(_draft_s, num_levels=num_levels))
        if num_rows not in self._tables:
            self._tables[num_rows] = self._verify_table(num_rows)
        places, verify_s = self._tables[num_rows]
        seconds: Floats = draft_s + np.interp(tokens_N, places, verify_s)
        return seconds

    def _verify_table(self, num_rows: int) -> tuple[Floats, Floats]:
        gammas = sorted(next(iter(self.trials.values())))
        places = np.array([self._between_sizes(num_rows, partial(_tokens, gamma=gamma)) for gamma in gammas])
        verify_s = np.array([self._between_sizes(num_rows, partial(_verify_s, gamma=gamma)) for gamma in gammas])
        verify_s = np.maximum.accumulate(verify_s)  # noise: more tokens are never cheaper
        if self.convex:
            verify_s = np.interp(places, *lower_hull(places, verify_s))
        slope = (verify_s[-1] - verify_s[-2]) / max(places[-1] - places[-2], 1e-9)
        return np.append(places, places[-1] + 1e4), np.append(verify_s, verify_s[-1] + 1e4 * slope)

    def _between_sizes(self, num_rows: int, value: Callable[[dict[int, Trial]], float]) -> float:
        sizes = sorted(self.trials)
        return float(np.interp(num_rows, sizes, [value(self.trials[size]) for size in sizes]))


def lower_hull(places: Floats, values: Floats) -> tuple[Floats, Floats]:
    """The corners of the lower convex hull of points whose places ascend."""
    kept: list[int] = []
    for i in range(len(places)):
        while len(kept) > 1 and _above(places, values, kept[-2], kept[-1], i):
            kept.pop()
        kept.append(i)
    return places[kept], values[kept]


def _above(places: Floats, values: Floats, left: int, middle: int, right: int) -> bool:
    """Whether the middle point is on or above the line between the others."""
    slope = (values[right] - values[left]) / (places[right] - places[left])
    return bool(values[middle] >= values[left] + slope * (places[middle] - places[left]))


def _tokens(trials: dict[int, Trial], gamma: int) -> float:
    return trials[gamma].num_nodes or gamma


def _verify_s(trials: dict[int, Trial], gamma: int) -> float:
    return trials[gamma].verify_s


def _draft_s(trials: dict[int, Trial], num_levels: int) -> float:
    gammas = sorted(trials)
    return float(np.interp(num_levels, gammas, [trials[gamma].draft_s for gamma in gammas]))
