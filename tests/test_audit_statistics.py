"""The audit's statistics of sampled rows: their moments, and what they see."""

from __future__ import annotations

import math

import pytest
import torch
from audit_samples import PROMPTS, SETTINGS, samples
from conftest import VOCAB, small_llama

from specdec.audit.forced import Forcing
from specdec.audit.law_tests import all_tests, chi_square, mean_ratio, skewed_tail
from specdec.audit.rows import Row
from specdec.audit.sampled import NUM_BINS, Contexts, Part, SampledRules, Sums, statistics_of
from specdec.core.sampling import processed
from specdec.models.causal_lm import CausalLM


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM(small_llama(0, torch.float32))


@pytest.mark.slow
def test_counts_of_repeated_contexts_see_what_the_likelihood_cannot(model):
    """An engine that never draws one of two equally probable tokens."""
    twin = small_llama(0, torch.float32)
    with torch.no_grad():
        twin.lm_head.weight[1::2] = twin.lm_head.weight[:-1:2]  # tokens 2i and 2i + 1 are equally probable
    place = CausalLM(twin)
    outputs = [
        [token - token % 2 * (token < VOCAB - 1)] for (token,) in samples(place, SETTINGS["plain"], 400, 1, seed=4)
    ]
    rows = [Row(i, str(i), PROMPTS[0], output) for i, output in enumerate(outputs)]
    forcing, rules, contexts = Forcing(place, 2, 2), SampledRules(SETTINGS["plain"], 2.0), Contexts.of(rows)
    statistics = [statistics_of(row, forcing, rules, contexts) for row in rows]
    found = {test.name: test.p_value for test in all_tests(statistics)}
    assert found["counts"] < 1e-6
    assert found["likelihood"] > 1e-3


def test_statistics_of_one_position_have_their_stated_moments(model):
    """By enumeration of all tokens: the mean of d is 0, its moments are those stated, and mean ratios are 1 at most."""
    for params in SETTINGS.values():
        scores = model.module(torch.tensor([PROMPTS[0]])).logits[0, -1:].detach()
        law = processed(scores[None], [params])[0, 0]
        drawn, ratio, bins = torch.zeros(3).double(), 0.0, torch.zeros(20).double()
        grid = (torch.arange(400).double() + 0.5) / 400  # stands for the random part
        for token in law.nonzero()[:, 0].tolist():
            one, many = Sums(), Sums()
            one.add(Part(Row(1, "1", PROMPTS[0], [token]), 0, scores, params), grid[:1])
            many.add(Part(Row(1, "1", PROMPTS[0], [token] * 400), 0, scores.expand(400, -1), params), grid)
            d = float(one.moments[0])
            drawn += float(law[token]) * torch.tensor([d, d**2, d**3])
            ratio += float(law[token]) * math.exp(mean_ratio(one.log_ratios.tolist()))
            bins += float(law[token]) * many.bins / 400
        assert abs(float(drawn[0])) < 1e-6
        assert torch.allclose(drawn[1:], one.moments[1:], rtol=1e-6)
        assert ratio <= 1 + 1e-9
        assert torch.allclose(bins, torch.full((20,), 0.05).double(), atol=0.002)


def test_tails_agree_with_known_laws():
    assert chi_square(3.841459, 1) == pytest.approx(0.05, abs=1e-6)
    assert skewed_tail(1.959964, 0.0) == pytest.approx(0.05, abs=1e-6)
    assert skewed_tail((2.995732 - 1), 2.0) == pytest.approx(0.1, abs=1e-6)  # an exponential variable's upper 5%
    assert skewed_tail(-(2.995732 - 1), -2.0) == pytest.approx(0.1, abs=1e-6)


def test_one_suspicious_row_counts_less_among_many():
    """The bound of its p-value is multiplied by the number of rows, at most 1."""

    def p_value(num_rows):
        quiet = {"impossible": [], "num_edge": 0, "log_ratios": [0.0], "moments": [0.0] * 3, "contexts": []}
        quiet["bins"] = [0] * NUM_BINS
        rows = [quiet | {"log_ratios": [math.log(1000)]}, *[quiet] * (num_rows - 1)]
        return next(test.p_value for test in all_tests(rows) if test.name == "rows")

    assert p_value(1) == pytest.approx(0.001)
    assert p_value(50) == pytest.approx(0.05)
    assert p_value(2000) == 1
