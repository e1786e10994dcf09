"""Bootstrap intervals: how much a figure of a point would vary with other prompts, or other rounds, of the same run.

Counts are resampled over prompts (acceptance, tokens per call, latency), speeds over rounds (tokens and seconds of
each), by `scipy.stats.bootstrap`. They say nothing of what differs between two runs of the same point, such as another
load on the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specdec.analysis import require

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

CONFIDENCE = 0.95
NUM_RESAMPLES = 999
MIN_UNITS = 4  # with fewer prompts or rounds an interval would pretend to know something
STAGES = ("prefill_s", "draft_s", "verify_s", "align_s", "schedule_s", "other_s")
Interval = tuple[float, float]


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
    import numpy as np

    seconds = [rounds[stage].fillna(0.0) for stage in STAGES if stage in rounds]
    tokens = [sum(emitted) for emitted in rounds["num_emitted"]] if len(rounds) else []
    prompts = [
        (sum(accepted), drafted, len(output), len(accepted))
        for accepted, drafted, output in zip(
            samples["accepted_lengths"], samples["num_drafted"], samples["output_ids"], strict=True
        )
    ]
    return Units(
        np.column_stack([tokens, sum(seconds)]).astype(float) if tokens else np.zeros((0, 2)),
        np.array(prompts, dtype=float).reshape(-1, 4),
        samples["latency_s"].to_numpy(dtype=float),
        samples["ttft_s"].to_numpy(dtype=float),
    )


def intervals(point: Units, baseline: Units | None = None) -> dict[str, Interval]:
    """Intervals by summary key (``tokens_per_s``, ``latency_s.p99``, ...); those that cannot be had are left out."""
    wanted = {
        "tokens_per_s": _of_ratio(point.rounds_R2),
        "acceptance_rate": _of_ratio(point.prompts_N4[:, [0, 1]]),
        "mean_acceptance_length": _of_ratio(point.prompts_N4[:, [2, 3]]),
        "speedup_vs_ar": None if baseline is None else _of_speedup(point.rounds_R2, baseline.rounds_R2),
    }
    for key, values_N in (("latency_s", point.latency_N), ("ttft_s", point.ttft_N)):
        wanted |= {f"{key}.p{p}": _of_percentile(values_N, p) for p in (50, 90, 99)}
    return {key: interval for key, interval in wanted.items() if interval is not None}


def of_mean(values: Any) -> Interval | None:
    """Interval of a mean."""
    import numpy as np

    values_N = np.asarray(values, dtype=float)
    return _bootstrap(len(values_N), lambda at: values_N[at].mean(axis=-1))


def of_ratio(numerators: Any, denominators: Any) -> Interval | None:
    """Interval of the quotient of two sums over the same units."""
    import numpy as np

    return _of_ratio(np.column_stack([numerators, denominators]).astype(float))


def _of_ratio(pairs_N2: np.ndarray) -> Interval | None:
    return _bootstrap(len(pairs_N2), lambda at: _quotient(pairs_N2, at)) if pairs_N2[:, 1].sum() else None


def _of_percentile(values_N: np.ndarray, percent: float) -> Interval | None:
    import numpy as np

    return _bootstrap(len(values_N), lambda at: np.percentile(values_N[at], percent, axis=-1))


def _of_speedup(ours_R2: np.ndarray, theirs_R2: np.ndarray) -> Interval | None:
    """Of the quotient of two speeds, with both runs resampled."""
    return _bootstrap(
        len(ours_R2), lambda at, other: _quotient(ours_R2, at) / _quotient(theirs_R2, other), len(theirs_R2)
    )


def _quotient(pairs_N2: np.ndarray, at: np.ndarray) -> Any:
    sums = pairs_N2[at].sum(axis=-2)
    return sums[..., 0] / sums[..., 1].clip(min=1e-12)


def _bootstrap(num_units: int, statistic: Callable[..., Any], num_others: int | None = None) -> Interval | None:
    """Percentile bootstrap over unit numbers; reproducible, because its seed is fixed."""
    import numpy as np

    if min(num_units, num_units if num_others is None else num_others) < MIN_UNITS:
        return None
    sizes = [num_units] if num_others is None else [num_units, num_others]
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
