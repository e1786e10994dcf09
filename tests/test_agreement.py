"""A prepared execution against the model's own layers; and who else reads a target's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_llama
from tampering import (
    FAST,
    IDS,
    aligned_logits,
    own_logits,
    tampered,
)
from test_execution import logits_of
from transformers.models.llama import modeling_llama

from specdec.core.clock import Clock
from specdec.core.outputs import NORMED, Outputs
from specdec.drafters.context import DrafterContext
from specdec.drafters.early_exit import first_layers
from specdec.errors import ConfigError
from specdec.models.causal_lm import CausalLM
from specdec.models.execution import agreement
from specdec.models.execution.agreement import disagreement
from specdec.models.execution.fused import FusedExecution
from specdec.registry import create


def test_transformers_own_hooks_do_not_stand_in_the_way():
    model = CausalLM(small_llama(3, torch.float32))
    with model.call_options(Outputs(logits=False, hidden=(NORMED,))):
        aligned_logits(model, IDS)
    assert model.execute("auto").name in FAST


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("place", ["qkv", "out", "gate_up", "down", "norm", "scale", "eps", "head"])
def test_a_fault_in_one_place_of_one_layer_is_found(place, dtype):
    """In what was prepared, at a size that 16-bit rounding cannot have."""
    module = small_llama(3, dtype)
    model = CausalLM(module)
    execution = FusedExecution(model.module)
    assert disagreement(execution) is None
    layer = execution.layers[1]
    if place == "head":
        execution.head.weight_OI = execution.head.weight_OI * 1.1
    elif place == "norm":
        layer.norm_mlp.weight = layer.norm_mlp.weight * 1.2
    elif place == "scale":
        layer.scale *= 3
    elif place == "eps":
        layer.norm_in.eps, layer.norm_in._eps = 20.0, torch.tensor(20.0)
    else:
        product = getattr(layer, place)
        product.weight_OI = product.weight_OI * 1.2
    assert ("the head" if place == "head" else "layer 1") in str(disagreement(execution))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_arithmetic_that_only_numbers_show_is_found(dtype, monkeypatch):
    """A function that was replaced in transformers' module, as kernel libraries do: 0.5% in the rotation."""
    plain = modeling_llama.apply_rotary_pos_emb

    def turned(q, k, cos, sin, *rest, **named):
        q, k = plain(q, k, cos, sin, *rest, **named)
        return q * 1.005, k

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", turned)
    model = CausalLM(small_llama(3, dtype))
    with pytest.raises(ConfigError, match=r"layer 0 differs from transformers' own by .* in float(32|64) explains"):
        model.execute("fused")
    execution = model.execute("auto")
    assert execution.name == "eager"
    assert "layer 0 differs" in str(execution.note)


@pytest.mark.slow
def test_a_run_says_once_why_it_is_not_fused(run, monkeypatch):
    plain = modeling_llama.rotate_half
    monkeypatch.setattr(modeling_llama, "rotate_half", lambda x: 1.01 * plain(x))
    small = ["pair=synthetic", "pair.hidden_size=64", "pair.num_layers=2", "data.num_prompts=2"]
    code, out, _ = run(
        *small, "data.max_input_tokens=20", "data.overlong=truncate", "max_new_tokens=6", "baseline=false"
    )
    assert code == 0
    reason = "execution=auto runs a LlamaForCausalLM eagerly: layer 0 differs from transformers' own"
    assert out.count(f"note: target: {reason}") == out.count(f"note: draft: {reason}") == 1
    document = json.loads(out.strip().splitlines()[-1])
    assert document["num_exact"] == 2
    environment = json.loads((Path(document["path"]) / "env.json").read_text())
    assert environment["execution"]["target"] == environment["execution"]["draft"] == "eager"
    code, _, err = run(*small, "execution=fused", "max_new_tokens=6", "data.max_input_tokens=20")
    assert code != 0
    assert err.count("\n") == 1
    assert "execution=fused cannot run this model: layer 0 differs" in err


def test_large_layers_are_converted_only_if_they_look_wrong(monkeypatch):
    monkeypatch.setattr(agreement, "FINER_BYTES", 10)
    converted, plain = [], agreement._in_finer_numbers

    def convert(decoder: Any, number: int, seen: Any) -> Any:
        converted.append(number)
        return plain(decoder, number, seen)

    monkeypatch.setattr(agreement, "_in_finer_numbers", convert)
    assert CausalLM(small_llama(3, torch.bfloat16)).execute("fused").name == "fused"
    assert not converted
    execution = FusedExecution(small_llama(3, torch.bfloat16))
    execution.layers[1].scale *= 2
    assert "layer 1 differs" in str(disagreement(execution))
    assert converted == [1]


# --- who else reads the target's weights ------------------------------------------------------------------------------


def context_of(model: CausalLM) -> DrafterContext:
    clock = Clock()

    def align(part: CausalLM) -> Any:
        part.execute("auto")
        return create("alignment", "inplace", part, clock)

    return DrafterContext(model, None, align, clock)


@pytest.mark.parametrize("name", ["adapter, last layer's v_proj", "hook on an MLP", "adapter on the head"])
def test_a_draft_of_the_targets_own_layers_has_its_adapter(name):
    target = tampered(name)
    draft = CausalLM(first_layers(target.module, 3))
    assert draft.execute("auto").name == "eager"
    torch.testing.assert_close(aligned_logits(draft, IDS), own_logits(target, IDS), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("drafter", ["medusa", "early_exit"])
@pytest.mark.parametrize("name", ["adapter on the head", "hook before the head"])
def test_heads_are_no_copies_of_a_head_that_is_more_than_its_matrix(drafter, name):
    with pytest.raises(ConfigError, match=r"heads that begin as copies of the target's own cannot: it (is a|has a)"):
        create("drafter", drafter, context_of(tampered(name)), untrained=True)


def test_an_eagle_layer_over_an_adapted_head_is_not_fused():
    for name, is_fast in (("adapter on the head", False), ("wrapped attention", True)):
        model = create("drafter", "eagle", context_of(tampered(name)), untrained=True).head.model
        assert model.execute("auto").name in (FAST if is_fast else ("eager",))


def test_fused_and_eager_agree_after_all_this():
    """The machinery of the other tests, on a model that nothing was done to."""
    model = CausalLM(small_llama(3, torch.float32))
    for eager, fused in zip(logits_of(model, "eager"), logits_of(model, "fused"), strict=True):
        torch.testing.assert_close(fused, eager, atol=1e-4, rtol=1e-4)
