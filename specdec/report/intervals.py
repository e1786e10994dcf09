"""Bootstrap intervals: how much a figure would vary with other prompts, rounds or turns of the same run.

Counts are resampled over prompts (acceptance, tokens per call, latency), speeds over rounds (tokens and seconds of
each), the benchmark's figures over its turns. The intervals do not cover what differs between two runs of the same
point, such as another load on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec.analysis import require
from specdec.core.tables import Interval

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 0.95
NUM_RESAMPLES = 999
MIN_UNITS = 4  # an interval of fewer prompts or rounds would suggest more than is known
STAGES = ("prefill_s", "draft_s", "verify_s", "align_s", "schedule_s", "other_s")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median, or a ratio of two, with its interval; with one measurement the interval is that measurement."""

    value: float
    low: float
    high: float
    num: int  # measurements


@dataclass(frozen=True, slots=True)
class Units:
    """What is resampled of one point: per round (tokens, seconds), per prompt (accepted, drafted, emitted, calls)."""

    rounds_R2: np.ndarray
    prompts_N4: np.ndarray
    latency_N: np.ndarray
    ttft_N: np.ndarray

    @property
    def speed(self) -> float:
        """Tokens per second of round time."""
        tokens, seconds = self.rounds_R2.sum(axis=0)
        return float(tokens / seconds) if seconds else 0.0


def units(samples: pd.DataFrame, rounds: pd.DataFrame) -> Units:
    """Collect the units of one point from its samples and rounds."""
    stages = [stage for stage in STAGES if stage in rounds]
    emitted = rounds["num_emitted"].map(sum) if len(rounds) else []
    lengths = samples["accepted_lengths"]
    prompts = [lengths.map(sum), samples["num_drafted"], samples["output_ids"].map(len), lengths.map(len)]
    return Units(
        np.column_stack([emitted, rounds[stages].fillna(0.0).sum(axis=1)]).astype(float),
        np.column_stack(prompts).astype(float),
        samples["latency_s"].to_numpy(dtype=float),
        samples["ttft_s"].to_numpy(dtype=float),
    )


def intervals(point: Units, baseline: Units | None = None) -> dict[str, Interval]:
    """Intervals by summary key (``tokens_per_s``, ``latency_s.p99``, ...); those that cannot be had are left out."""
    prompts_N4 = point.prompts_N4
    wanted = {
        "tokens_per_s": of_ratio(*point.rounds_R2.T),
        "acceptance_rate": of_ratio(prompts_N4[:, 0], prompts_N4[:, 1]),
        "mean_acceptance_length": of_ratio(prompts_N4[:, 2], prompts_N4[:, 3]),
        "speedup_vs_ar": None if baseline is None else _of_speedup(point.rounds_R2, baseline.rounds_R2),
    }
    for key, values_N in (("latency_s", point.latency_N), ("ttft_s", point.ttft_N)):
        wanted |= {f"{key}.p{p}": _of_percentile(values_N, p) for p in (50, 90, 99)}
    return {key: interval for key, interval in wanted.items() if interval is not None}


def of_mean(values: Any) -> Interval | None:
    """Interval of a mean."""
    values_N = np.asarray(values, dtype=float)
    return bootstrap(lambda at: values_N[at].mean(axis=-1), len(values_N))


def of_ratio(numerators: Any, denominators: Any) -> Interval | None:
    """Interval of the quotient of two sums over the same units."""
    pairs_N2 = np.column_stack([numerators, denominators]).astype(float)
    return bootstrap(lambda at: _quotient(pairs_N2, at), len(pairs_N2)) if pairs_N2[:, 1].sum() else None


def median(values: Sequence[float]) -> Estimate:
    """The median of measurements."""
    values_N = np.asarray(values, dtype=float)
    return _estimate(lambda at: np.median(values_N[at], axis=-1), len(values_N))


def ratio_of_medians(values: Sequence[float], others: Sequence[float]) -> Estimate:
    """median(values) / median(others); the i-th of both were taken in the same turn, and are resampled together."""
    if len(values) != len(others):
        raise ValueError(f"{len(values)} measurements against {len(others)}: turns must be complete")
    a, b = np.asarray(values, dtype=float), np.asarray(others, dtype=float)
    return _estimate(lambda at: np.median(a[at], axis=-1) / np.median(b[at], axis=-1), len(a))


def bootstrap(statistic: Callable[..., Any], *sizes: int, min_units: int = MIN_UNITS) -> Interval | None:
    """Percentile bootstrap (Efron 1979); reproducible, because its seed is fixed.

    Args:
        statistic: of arrays of unit numbers, one per sample, along their last axis.
        sizes: numbers of units of the samples, which are resampled independently.

    Returns:
        The interval; None with fewer than ``min_units`` of any sample, or where the statistic is not a number.
    """
    if min(sizes) < min_units:
        return None
    result = require("scipy.stats").bootstrap(
        [np.arange(size) for size in sizes],
        lambda *at, axis: statistic(*(a.astype(int) for a in at)),
        n_resamples=NUM_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        axis=-1,
        batch=max(1, 2_000_000 // max(sizes)),
        rng=np.random.default_rng(0),
    )
    low, high = float(result.confidence_interval.low), float(result.confidence_interval.high)
    return (low, high) if low == low and high == high else None


def _of_percentile(values_N: np.ndarray, percent: float) -> Interval | None:
    return bootstrap(lambda at: np.percentile(values_N[at], percent, axis=-1), len(values_N))


def _of_speedup(ours_R2: np.ndarray, theirs_R2: np.ndarray) -> Interval | None:
    return bootstrap(
        lambda at, other: _quotient(ours_R2, at) / _quotient(theirs_R2, other), len(ours_R2), len(theirs_R2)
    )


def _quotient(pairs_N2: np.ndarray, at: np.ndarray) -> Any:
    sums = pairs_N2[at].sum(axis=-2)
    return sums[..., 0] / sums[..., 1].clip(min=1e-12)


def _estimate(statistic: Callable[[np.ndarray], Any], num: int) -> Estimate:
    if num == 0:
        raise ValueError("no measurement")
    value = float(statistic(np.arange(num)))
    low, high = bootstrap(statistic, num, min_units=2) or (value, value)
    return Estimate(value, low, high, num)
