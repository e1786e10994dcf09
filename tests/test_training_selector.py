"""task=selector: the network learns which shape pays where, and the command makes a folder that runs load."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from specdec.selectors.combs import CombLayout
from specdec.selectors.network import NUM_NUMBERS
from specdec.selectors.times import NODES, RoundTimes
from specdec.training import TrainingError, run_task
from specdec.training.config import TrainConfig
from specdec.training.resolve import shrink_to_rehearse
from specdec.training.roots import RootSet
from specdec.training.selector import NETWORK, Problem, check_settings, evaluate, fit
from specdec.training.selector_config import SelectorConfig

CFG = SelectorConfig(temperatures=[0.5, 1.0], num_paths=2, depth=2, batches=[1, 4], steps=100)


def problem(num: int = 400) -> Problem:
    """Roots at which either nothing or everything is accepted, as the first hidden number says."""
    generator = torch.Generator().manual_seed(0)
    shapes = CombLayout(2, 2).shapes
    hidden_ND = torch.randn(num, 8, generator=generator)
    depths_A = torch.tensor([float(shape.depth) for shape in shapes])
    tokens_NA = 1 + (hidden_ND[:, :1] > 0) * depths_A
    temperatures_N = torch.tensor([0.5, 1.0]).repeat(num // 2)
    numbers_NX = torch.randn(num, NUM_NUMBERS, generator=generator)
    states = torch.randn(num, 2, 6, generator=generator)
    roots = RootSet(hidden_ND, states, numbers_NX, tokens_NA, temperatures_N, torch.arange(num) // 4)
    slow = RoundTimes({1: 0.2, 2: 0.2}, {1 + n: 1 + 0.05 * n for n in NODES})
    return Problem(CFG, roots, [slow, replace(slow, draft_s={1: 0.5, 2: 0.5})])


def test_the_best_static_shapes_are_those_of_the_most_tokens_per_second():
    of = problem()
    mean = 0.5  # half of the roots accept everything
    for u, draft_s in enumerate((0.2, 0.5)):
        speeds = {}
        for a, shape in enumerate(of.shapes):
            nodes = shape.trunk + shape.width * (shape.depth - shape.trunk)
            speeds[a] = (1 + mean * shape.depth) / (draft_s * max(shape.depth, 1) + 1 + 0.05 * nodes)
        assert int(of.best_KU[0, u]) == max(speeds, key=speeds.get)
    lines = of.table(["t", "d"])
    assert {(line["temperature"], line["batch"]) for line in lines} == {(0.5, 1), (0.5, 4), (1.0, 1), (1.0, 4)}
    assert not of.held_N.all()
    assert of.held_N.any()


def test_the_network_learns_what_can_be_known(tmp_path):
    of = problem()
    cfg = TrainConfig(selector=CFG)
    record = fit(cfg, of, tmp_path)
    network = of.network()
    network.load_state_dict(torch.load(tmp_path / NETWORK))
    found = evaluate(of, network)
    assert found["gain"] == record["final"]["gain"] > 0.6 * found["oracle_gain"] > 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_paths": 0}, "selector.num_paths=0: it must be at least 1"),
        ({"depth": 0}, "selector.depth=0"),
        ({"temperatures": [0.0, 1.0]}, "selector.temperatures"),
        ({"batches": []}, "selector.batches"),
        ({"verifier": "gbv"}, "selector.verifier has no formula"),
    ],
)
def test_settings_from_which_nothing_is_learned_are_refused(settings, message):
    with pytest.raises(TrainingError, match=message) as error:
        check_settings(replace(CFG, **settings))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_command_writes_a_folder_for_runs(tmp_path):
    cfg = TrainConfig(task="selector", rehearse=True, output_dir=str(tmp_path), progress=False)
    report = run_task("tiny", shrink_to_rehearse(cfg))
    assert report["roots"] > 10
    settings = json.loads((tmp_path / "export/config.json").read_text())
    assert (settings["verifier"], settings["num_paths"], settings["depth"]) == ("specinfer", 2, 2)
    assert len(json.loads((tmp_path / "export/shapes.json").read_text())["shapes"]) == 2
    assert (tmp_path / "export/model.safetensors").exists()
