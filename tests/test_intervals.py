"""Intervals of medians and ratios cover what they say."""

from __future__ import annotations

import numpy as np
import pytest

from specdec.report.intervals import median, of_ratio, ratio_of_medians


def test_the_interval_covers_the_median_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        estimate = median(rng.lognormal(0.0, 0.4, size=25).tolist())
        assert estimate.low <= estimate.value <= estimate.high
        covered += estimate.low <= 1.0 <= estimate.high  # the median of that law
    assert 0.88 * 200 <= covered <= 0.995 * 200


def test_a_ratio_of_turns_is_free_of_what_the_turns_share():
    rng = np.random.default_rng(2)
    drift = rng.uniform(0.2, 5.0, size=9)  # the machine is slow in some turns, for both
    ratio = ratio_of_medians((2 * drift).tolist(), drift.tolist())
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2, 2, 2))
    assert ratio_of_medians([3.0, 9.0, 1.0], [2.0, 1.0, 4.0]).value == pytest.approx(3.0 / 2.0)
    with pytest.raises(ValueError, match="turns must be complete"):
        ratio_of_medians([1.0], [1.0, 2.0])


def test_bootstrap_intervals_have_the_width_of_theory():
    rng = np.random.default_rng(1)
    values = rng.normal(5, 2, size=400)
    low, high = of_ratio(values, np.ones_like(values))
    width = 2 * 1.96 * values.std() / 20
    assert low < values.mean() < high
    assert high - low == pytest.approx(width, rel=0.15)
    drafted = rng.integers(20, 60, size=300)
    accepted = rng.binomial(drafted, 0.6)
    low, high = of_ratio(accepted, drafted)
    assert low < accepted.sum() / drafted.sum() < high
    assert high - low == pytest.approx(2 * 1.96 * (0.24 / drafted.sum()) ** 0.5, rel=0.25)
    assert of_ratio([1.0, 2.0, 3.0], [1, 1, 1]) is None, "three values say nothing of their spread"
