"""Selectors that are read from files, on the CPU and on a GPU that is pretended, and the files that are refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from cases import short_only
from pretend_cuda import GPU, PretendCuda
from selector_runs import NUM_NEW, PARAMS, PROMPTS, TEMPERATURE, ByLength, context, decode, untrained

from specdec.conformance.models import on_device, sampled
from specdec.core.sampling_params import SamplingParams
from specdec.errors import ConfigError
from specdec.registry import create
from specdec.selectors import trained
from specdec.selectors.base import Roots, RowShape, SelectorContext
from specdec.selectors.times import RoundTimes


def shapes(**changes) -> dict:
    line = {"pair": ["a", "b"], "verifier": "specinfer", "temperature": TEMPERATURE, "batch": 1}
    sizes = {"num_paths": 2, "trunk": 1, "branch": 2}
    return {"shapes": [{**line, **sizes, **changes}, {**line, "batch": 8, "num_paths": 1, "trunk": 0, "branch": 3}]}


def test_a_static_shape_is_that_of_the_nearest_batch_and_no_deeper_than_the_row_may_draft(tmp_path):
    path = tmp_path / "shapes.json"
    path.write_text(json.dumps(shapes()))
    selector = create("selector", "static", context(), path=str(path))
    roots = Roots([0, 1], lambda _: [1], [1, 1], [4, 2], [PARAMS] * 2, torch.zeros(2, 4))
    selector.prepare(2)
    assert selector.choose(roots) == [RowShape(2, 1, 3), RowShape(2, 1, 2)]
    selector.prepare(6)
    assert selector.choose(roots) == [RowShape(1, 0, 3), RowShape(1, 0, 2)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("[]", "no table of shapes"),
        (shapes(num_paths=0), "num_paths=0: it must be a whole number of at least 1"),
        (shapes(trunk=-1), "trunk=-1: it must be a whole number of at least 0"),
        (shapes(branch=9), "2 paths of 10 tokens at batch 1: set tree.num_paths and gamma"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, content, message):
    path = tmp_path / "shapes.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    refused("static", message, context(), path=str(path))


def test_a_table_for_something_else_is_refused(tmp_path):
    path = tmp_path / "shapes.json"
    path.write_text(json.dumps(shapes()))
    refused("static", "measured for another pair", context(pair=["a", "c"]), path=str(path))
    refused("static", "no shape for verifier=spectr, only for specinfer", context(verifier="spectr"), path=str(path))
    refused("static", "no shape for temperature=0.5, only for 1.3", context(params=SamplingParams(0.5)), path=str(path))
    refused("static", "needs selector.path=FILE", context(), path=None)
    refused("estimate", "no formula for the verifier", context(verifier="gbv"), samples=1, by="speed")
    refused("estimate", "selector.samples=0", context(), samples=0, by="speed")
    refused("estimate", "selector.by=size", context(), samples=1, by="size")
    refused("estimate", "set drafter=model", replace(context(), draft=None), samples=1, by="speed")


def refused(name: str, message: str, own: SelectorContext, **settings) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        create("selector", name, own, **settings)
    assert "\n" not in str(error.value)


@pytest.fixture
def folder(tmp_path):
    return untrained(tmp_path / "selector", ["a", "b"], [0.5, TEMPERATURE])


def test_a_trained_selector_decodes_and_is_refused_where_it_was_not_trained(folder):
    one, many = (decode(create("selector", "trained", context(), path=folder), batch=n) for n in (1, 5))
    assert [row.output_ids for row in one] == [row.output_ids for row in many]
    assert one[0].output_ids == list(sampled(0, "float64", PROMPTS[0], NUM_NEW, 0, TEMPERATURE))
    refused("trained", "needs selector.path=FOLDER", context(), path=None)
    refused("trained", "no folder of", context(), path=folder + "x")
    refused("trained", "trained for another pair", context(pair=["b", "a"]), path=folder)
    refused("trained", "trained for verifier=specinfer, not verifier=naive", context(verifier="naive"), path=folder)
    refused("trained", "temperature 0.5, 1.3, not 0.7", context(params=SamplingParams(0.7)), path=folder)
    refused("trained", "set tree.num_paths and gamma", context(depth=2), path=folder)
    refused("trained", "set drafter=model", replace(context(), draft=None), path=folder)


@pytest.mark.parametrize("name", short_only(["by_length", "trained", "estimate"], "by_length"))
def test_on_a_gpu_that_is_pretended(folder, name, monkeypatch):
    """Tensors of both devices are never mixed, and shapes are those of the CPU where forwards take the same time."""

    def measured_alike(*args):
        times = measure(*args)
        return RoundTimes(dict.fromkeys(times.draft_s, 1.0), dict.fromkeys(times.target_s, 2.0))

    measure = trained.measure
    monkeypatch.setattr(trained, "measure", measured_alike)

    def run():
        settings = {"trained": {"path": folder}, "estimate": {"samples": 2, "by": "tokens"}}
        selector = ByLength() if name == "by_length" else create("selector", name, context(), **settings[name])
        return [(row.output_ids, row.accepted_lengths, row.num_drafted) for row in decode(selector)]

    expected = run()
    with PretendCuda(), on_device(GPU):
        assert run() == expected
