"""The tests of a file of sampled rows, with one level for all of them together.

The level is divided by the number of tests that apply (Bonferroni), so the chance that a right engine is called wrong
is the level at most: exactly for `ratio` and `rows` (Ville's inequality) and for `support`; by the central limit
theorem, with the exact third moment, for `likelihood`; by the limit law of chi-square for `ranks` and `counts`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from specdec.audit.sampled import MIN_EXPECTED, NUM_BINS

_MIN_VARIANCE = 3.0  # of the sum of d, below which its law is not near enough to a normal one


@dataclass(frozen=True, slots=True)
class LawTest:
    """One test: how probable a right engine makes what was seen, at most."""

    name: str
    p_value: float
    detail: str


def all_tests(rows: list[dict[str, Any]]) -> list[LawTest]:
    """All tests that apply to the statistics of these rows (`specdec.audit.sampled.statistics_of`)."""
    found = [_support(rows), _ratio(rows), _rows(rows)]
    return found + [test for test in (_likelihood(rows), _ranks(rows), _counts(rows)) if test is not None]


def mean_ratio(log_ratios: Iterable[float]) -> float:
    """log of the mean of the ratios of a row, or of all."""
    values = np.array(list(log_ratios))
    return float(np.logaddexp.reduce(values) - math.log(len(values)))


def _support(rows: list[dict[str, Any]]) -> LawTest:
    number = sum(len(row["impossible"]) for row in rows)
    edge = sum(row["num_edge"] for row in rows)
    return LawTest(
        "support", 0.0 if number else 1.0, f"{number} tokens that the settings exclude, {edge} more at the edge"
    )


def _ratio(rows: list[dict[str, Any]]) -> LawTest:
    evidence = mean_ratio(np.array([row["log_ratios"] for row in rows]).sum(0))
    return LawTest("ratio", _tail(evidence), f"likelihood ratio e^{evidence:.1f}, all rows together")


def _rows(rows: list[dict[str, Any]]) -> LawTest:
    evidence = [mean_ratio(row["log_ratios"]) for row in rows]
    largest = max(evidence)
    p_value = min(1.0, len(rows) * _tail(largest))
    return LawTest("rows", p_value, f"likelihood ratio e^{largest:.1f} in the most suspicious of {len(rows)} rows")


def _tail(log_ratio: float) -> float:
    return math.exp(-max(log_ratio, 0.0))


def _likelihood(rows: list[dict[str, Any]]) -> LawTest | None:
    total, variance, third = np.array([row["moments"] for row in rows]).sum(0)
    if variance < _MIN_VARIANCE:
        return None
    z = float(total / math.sqrt(variance))
    p_value = skewed_tail(z, float(third / variance**1.5))
    return LawTest("likelihood", p_value, f"sum of log-probabilities {z:+.2f} standard deviations from its mean")


def skewed_tail(z: float, skewness: float) -> float:
    """Two-sided p-value of a standardised sum, by a shifted gamma law with the same three moments.

    Its tail stays positive where Edgeworth's series does not.
    """
    if abs(skewness) < 1e-3:
        return math.erfc(abs(z) / math.sqrt(2))
    shape = 4 / skewness**2  # gamma law of that skewness, standardised: (G - shape) / sqrt(shape)
    at = shape + (z if skewness > 0 else -z) * math.sqrt(shape)
    upper = _gamma_tail(shape, at)
    return min(1.0, 2 * min(upper, 1 - upper)) if at > 0 else 0.0


def _ranks(rows: list[dict[str, Any]]) -> LawTest | None:
    counts = np.array([row["bins"] for row in rows]).sum(0)
    expected = counts.sum() / NUM_BINS
    if expected < MIN_EXPECTED:
        return None
    value = float(((counts - expected) ** 2 / expected).sum())
    return LawTest(
        "ranks", chi_square(value, NUM_BINS - 1), f"chi-square {value:.1f} with {NUM_BINS - 1} degrees of freedom"
    )


def _counts(rows: list[dict[str, Any]]) -> LawTest | None:
    cells: dict[str, dict[int, float]] = {}
    counts: dict[str, Counter[int]] = {}
    for row in rows:
        for key, token, *new in row["contexts"]:
            if new:
                cells[key] = {int(name): float(share) for name, share in new[0]}
                counts[key] = Counter()
            counts[key][token if token in cells[key] else -1] += 1
    value, freedom = 0.0, 0
    for key, law in cells.items():
        total = counts[key].total()
        used = {token: share for token, share in law.items() if share > 1e-9}
        if len(used) > 1:
            value += sum((counts[key][token] - total * share) ** 2 / (total * share) for token, share in used.items())
            freedom += len(used) - 1
    if not freedom:
        return None
    detail = f"chi-square {value:.1f} with {freedom} degrees of freedom, over {len(cells)} repeated contexts"
    return LawTest("counts", chi_square(value, freedom), detail)


def chi_square(value: float, freedom: int) -> float:
    """Probability of a larger value."""
    return _gamma_tail(freedom / 2, value / 2)


def _gamma_tail(shape: float, value: float) -> float:
    parts = torch.tensor([shape, max(value, 0.0)], dtype=torch.float64)
    return float(torch.special.gammaincc(parts[0], parts[1]))
