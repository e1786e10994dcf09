"""The fits of the scaling-law study, on data whose law is known."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parent.parent / "experiments/scaling_laws/fits.py"


@pytest.fixture(scope="module")
def fits():
    spec = importlib.util.spec_from_file_location("scaling_fits", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_log_law_is_found_and_extrapolated(fits):
    x = [1e4, 2e4, 4e4, 8e4, 1.6e5]
    line = fits.fit_log_line(x, [0.5 + 0.7 * np.log10(value) for value in x])
    assert (line.a, line.b, line.r_squared) == pytest.approx((0.5, 0.7, 1.0))
    assert line.r_squared_linear < 0.9
    assert fits.fit_log_line(x, [2 + 1e-5 * value for value in x]).r_squared_linear == pytest.approx(1.0)
    assert line.left_out_rmse == pytest.approx(0.0, abs=1e-9)
    assert line.largest_predicted == pytest.approx(line.largest_y)


def test_errors_are_those_of_points_not_seen(fits):
    x, y = np.array([1e1, 1e2, 1e3, 1e4]), np.array([1.0, 2.0, 3.0, 3.2])  # growth slows down at the end
    line = fits.fit_log_line(x[::-1], y[::-1])  # order means nothing
    assert line.largest_predicted == pytest.approx(4.0)  # by the three others, which lie on a line
    errors = []
    for i in range(4):
        keep = np.arange(4) != i
        slope, start = np.polyfit(np.log10(x[keep]), y[keep], 1)
        errors.append(start + slope * np.log10(x[i]) - y[i])
    assert line.left_out_rmse == pytest.approx(np.sqrt(np.mean(np.square(errors))))
    residuals = y - line(x)
    assert line.r_squared == pytest.approx(1 - (residuals**2).sum() / ((y - y.mean()) ** 2).sum())


def test_too_few_points(fits):
    with pytest.raises(ValueError, match="two different x"):
        fits.fit_log_line([5, 5], [1, 2])
    line = fits.fit_log_line([1, 10], [1, 2])
    assert line.left_out_rmse is None
    assert line.largest_predicted is None


def test_best_draft_length_weighs_acceptance_against_cost(fits):
    rates = [0.8] * 6
    dear = lambda num_tokens: 1.0 * num_tokens  # noqa: E731  every verified token costs a plain step
    cheap = lambda num_tokens: 1.0  # noqa: E731
    assert fits.best_draft_length(rates, 0.05, dear) == (0, 1.0)  # never worth it
    gamma, speed = fits.best_draft_length(rates, 0.05, cheap)
    expected = [sum(0.8**i for i in range(g + 1)) / (1 + 0.05 * g) for g in range(7)]
    assert (gamma, speed) == (int(np.argmax(expected)), pytest.approx(max(expected)))
    assert fits.best_draft_length([0.0, 0.9], 0.01, cheap)[0] == 0  # nothing behind a place that always fails
