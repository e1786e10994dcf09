"""Acceptance per request, in the schema that other tools read."""

from __future__ import annotations

import pytest
import torch
from conftest import perturbed, small_llama

import specdec
from specdec.core.acceptance import by_place, speculative_decoding


def test_the_published_example():
    """The numbers in the description of vLLM's pull request 48915."""
    accepted = [0] * 39 + [1] + [3] * 3
    found = speculative_decoding(accepted, [3] * 43)
    assert found == {
        "mean_acceptance_length": pytest.approx(1.2325581395348837),
        "draft_acceptance_rate": pytest.approx(0.07751937984496124),
        "acceptance_histogram": [39, 1, 0, 3],
        "num_spec_steps": 43,
        "num_accepted_draft_tokens": 10,
        "num_draft_tokens": 129,
        "num_spec_tokens": 3,
    }


def test_steps_without_a_draft_do_not_count():
    found = speculative_decoding([0, 2, 0], [0, 3, 0], detailed=True)
    assert found["num_spec_steps"] == 1
    assert (found["per_step_accepted"], found["per_step_drafted"]) == ([2], [3])
    none = speculative_decoding([0, 0], [0, 0])
    assert none["mean_acceptance_length"] is None
    assert none["draft_acceptance_rate"] is None
    assert none["acceptance_histogram"] == []


def test_acceptance_by_place():
    found = by_place([(0, 2), (2, 2), (1, 3), (0, 0)])
    assert found["acceptance_by_place"] == [pytest.approx(2 / 3), pytest.approx(1 / 3), 0]
    assert found["first_rejections"] == [1, 1, 0]  # the one that accepted everything rejected nothing
    assert by_place([]) == {"acceptance_by_place": [], "first_rejections": []}


def test_a_call_reports_its_rows():
    target = small_llama(0, torch.float64, layers=1)
    settings = {"max_new_tokens": 12, "gamma": 3, "return_dict_in_generate": True}
    output = specdec.generate(target, perturbed(target, 0.05), [[1, 2], [3]], pad_token_id=0, **settings)
    for row, found in enumerate(output.speculative_decoding):
        assert found["num_accepted_draft_tokens"] == output.num_accepted[row]
        assert found["num_draft_tokens"] == output.num_drafted[row] == sum(found["per_step_drafted"])
        assert sum(found["acceptance_histogram"]) == found["num_spec_steps"] == len(found["per_step_accepted"])
        assert found["num_spec_tokens"] == 3
