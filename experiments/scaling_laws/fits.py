"""Straight lines in log10(x), with the errors that an honest reader asks for. Needs numpy only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class LogLine:
    """y = a + b * log10(x), by ordinary least squares."""

    a: float
    b: float
    r_squared: float
    r_squared_linear: float  # of a line in x itself, for comparison
    num_points: int
    left_out_rmse: float | None  # each point predicted by the line through all the others
    largest_x: float
    largest_y: float
    largest_predicted: float | None  # by the line through all points but the largest x

    def __call__(self, x: Any) -> Any:
        return self.a + self.b * np.log10(x)

    def record(self) -> dict[str, Any]:
        """As numbers for JSON."""
        return {name: round(value, 5) if isinstance(value, float) else value for name, value in asdict(self).items()}


def fit_log_line(x: Sequence[float], y: Sequence[float]) -> LogLine:
    """Fit, and judge the fit by points that it has not seen.

    Raises:
        ValueError: there are fewer than two different x.
    """
    xs, ys = np.log10(np.asarray(x, float)), np.asarray(y, float)
    if len(set(xs.tolist())) < 2:
        raise ValueError("a line needs two different x")
    a, b = _line(xs, ys)
    largest = int(xs.argmax())
    return LogLine(
        a=a,
        b=b,
        r_squared=_r_squared(xs, ys),
        r_squared_linear=_r_squared(10**xs, ys),
        num_points=len(xs),
        left_out_rmse=_left_out(xs, ys),
        largest_x=float(10 ** xs[largest]),
        largest_y=float(ys[largest]),
        largest_predicted=_without(xs, ys, largest),
    )


def best_draft_length(
    rates: Sequence[float], draft_step_s: float, verify_s: Callable[[int], float]
) -> tuple[int, float]:
    """The gamma of the best expected speed over plain decoding, and that speed.

    Args:
        rates: acceptance per place in the draft, of what is drafted there with all before accepted.
        draft_step_s: of the draft, one token. verify_s: of the target, by the number of tokens per row.
    """
    reach = np.cumprod(rates)
    speeds = [1.0]
    for gamma in range(1, len(rates) + 1):
        tokens = 1 + float(reach[:gamma].sum())
        speeds.append(tokens * verify_s(1) / (gamma * draft_step_s + verify_s(gamma + 1)))
    gamma = int(np.argmax(speeds))
    return gamma, speeds[gamma]


def _line(xs: np.ndarray, ys: np.ndarray) -> tuple[float, float]:
    b, a = np.polyfit(xs, ys, 1)
    return float(a), float(b)


def _r_squared(xs: np.ndarray, ys: np.ndarray) -> float:
    """Share of the variance that a line explains."""
    a, b = _line(xs, ys)
    spread = float(((ys - ys.mean()) ** 2).sum())
    return 1 - float(((ys - a - b * xs) ** 2).sum()) / spread if spread else 0.0


def _without(xs: np.ndarray, ys: np.ndarray, index: int) -> float | None:
    """What the line through the other points says at this one."""
    others = np.arange(len(xs)) != index
    if len(set(xs[others].tolist())) < 2:
        return None
    a, b = _line(xs[others], ys[others])
    return float(a + b * xs[index])


def _left_out(xs: np.ndarray, ys: np.ndarray) -> float | None:
    predicted = [_without(xs, ys, index) for index in range(len(xs))]
    errors = [(p - y) ** 2 for p, y in zip(predicted, ys.tolist(), strict=True) if p is not None]
    return float(np.sqrt(np.mean(errors))) if errors else None
