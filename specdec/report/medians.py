"""Medians, their bootstrap intervals, and ratios of medians of measurements that were taken in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic and its bootstrap interval; with one measurement the interval is that measurement."""

    value: float
    low: float
    high: float
    num: int  # measurements


def median(values: Sequence[float]) -> Estimate:
    """The median; the interval resamples the measurements (percentile bootstrap, Efron 1979)."""
    samples = np.asarray(values, dtype=float)
    return _estimate(len(samples), lambda index: np.median(samples[index], axis=-1))


def ratio_of_medians(values: Sequence[float], others: Sequence[float]) -> Estimate:
    """median(values) / median(others); the i-th of both were taken in the same turn, and are resampled together."""
    if len(values) != len(others):
        raise ValueError(f"{len(values)} measurements against {len(others)}: turns must be complete")
    a, b = np.asarray(values, dtype=float), np.asarray(others, dtype=float)
    return _estimate(len(a), lambda index: np.median(a[index], axis=-1) / np.median(b[index], axis=-1))


def _estimate(num: int, statistic: Callable[[np.ndarray], np.ndarray]) -> Estimate:
    if num == 0:
        raise ValueError("no measurement")
    value = float(statistic(np.arange(num)[None])[0])
    drawn = statistic(np.random.default_rng(0).integers(num, size=(RESAMPLES, num)))
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Estimate(value, float(low), float(high), num)
