"""The presets of pairs by Hub names: shapes as published, and pairs that decode."""

from __future__ import annotations

import json

import pytest
import torch
from cases import short_only
from test_pair import composed

from specdec.models.random_weights import random_model

NUM_WEIGHTS = {
    "smollm2": (1_711_376_384, 134_515_008),
    "llama3": (8_030_261_248, 1_235_814_400),
    "gemma3": (999_885_952, 268_098_176),
    "qwen3": (8_190_735_360, 596_049_920),
    "vicuna": (6_738_415_616, 68_030_208),
}
"""Of target and draft, as the model pages on the Hub show them."""


@pytest.mark.parametrize("name", short_only(NUM_WEIGHTS, "smollm2"))
def test_the_shapes_are_those_that_were_published(name):
    pair = composed(f"pair={name}", "weights=random").pair
    modules = [random_model(role, pair, 0, torch.float32, torch.device("meta")) for role in ("target", "draft")]
    assert tuple(sum(weight.numel() for weight in module.parameters()) for module in modules) == NUM_WEIGHTS[name]
    assert len({module.config.vocab_size for module in modules}) == 1


@pytest.mark.parametrize("name", short_only(["smollm2", "llama3", "gemma3"], "smollm2"))
def test_small_random_copies_decode_exactly(run, name):
    small = ["weights=random", "pair.num_layers=2", "pair.hidden_size=256", "pair.vocab_size=2048"]
    code, out, err = run(f"pair={name}", *small, "data.num_prompts=2", "max_new_tokens=6", "batch=2", "baseline=false")
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["num_exact"] == 2
