"""Bootstrap intervals: how much a figure would vary with other prompts, rounds or turns of the same run.

Counts are resampled over prompts (acceptance, tokens per call, latency), speeds over rounds (tokens and seconds of
each), the benchmark's figures over its turns. The intervals do not cover what differs between two runs of the same
point, such as another load on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec.analysis import Record
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


def tokens_and_seconds(rounds: pd.DataFrame) -> np.ndarray:
    """Output tokens and seconds of each round, (R, 2)."""
    stages = [stage for stage in STAGES if stage in rounds]
    emitted = rounds["num_emitted"].map(sum) if len(rounds) else []
    return np.column_stack([emitted, rounds[stages].fillna(0.0).sum(axis=1)]).astype(float)


def tokens_and_seconds_of(lines: Iterable[Record]) -> np.ndarray:
    """The same of the lines of rounds.jsonl, without pandas."""
    found = [[sum(line["num_emitted"]), sum(line.get(stage) or 0.0 for stage in STAGES)] for line in lines]
    return np.array(found, dtype=float).reshape(-1, 2)


def intervals(
    point: Record, samples: pd.DataFrame, rounds_R2: np.ndarray, baseline_R2: np.ndarray | None = None
) -> dict[str, Interval]:
    """Intervals by summary key (``tokens_per_s``, ``latency_s.p99``, ...); those that cannot be had are left out.

    Those of speeds are scaled to the summary's figure, to which several processes or attempts may contribute.

    Args:
        rounds_R2, baseline_R2: `tokens_and_seconds` of the point and of its baseline.
    """
    lengths = samples["accepted_lengths"]
    wanted = {
        "acceptance_rate": of_ratio(lengths.map(sum), samples["num_drafted"]),
        "mean_acceptance_length": of_ratio(samples["output_ids"].map(len), lengths.map(len)),
    }
    for key in ("latency_s", "ttft_s"):
        wanted |= {f"{key}.p{p}": _of_percentile(samples[key].to_numpy(dtype=float), p) for p in (50, 90, 99)}
    known = {key: interval for key, interval in wanted.items() if interval is not None}
    return known | speed_intervals(point, rounds_R2, baseline_R2)


def speed_intervals(point: Record, rounds_R2: np.ndarray, baseline_R2: np.ndarray | None) -> dict[str, Interval]:
    """Those of ``tokens_per_s`` and ``speedup_vs_ar``, as far as they can be had."""
    wanted = {"tokens_per_s": of_ratio(*rounds_R2.T)}
    speeds = {"tokens_per_s": _quotient(rounds_R2, np.arange(len(rounds_R2)))}
    if baseline_R2 is not None:
        wanted["speedup_vs_ar"] = _of_speedup(rounds_R2, baseline_R2)
        speeds["speedup_vs_ar"] = speeds["tokens_per_s"] / _quotient(baseline_R2, np.arange(len(baseline_R2)))
    found = {key: (interval, point.get(key), speeds[key]) for key, interval in wanted.items()}
    return {
        key: (interval[0] * figure / speed, interval[1] * figure / speed) if speed and figure else interval
        for key, (interval, figure, speed) in found.items()
        if interval
    }


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
    rng, at_once = np.random.default_rng(0), max(1, 2_000_000 // max(sizes))
    parts = [min(at_once, NUM_RESAMPLES - start) for start in range(0, NUM_RESAMPLES, at_once)]
    found = [statistic(*(rng.integers(size, size=(num, size)) for size in sizes)) for num in parts]
    low, high = map(float, np.quantile(np.concatenate(found), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]))
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
