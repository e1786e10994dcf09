"""Variants of the Llama family that stay fused, and are right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from cases import short_only
from conftest import VOCAB, small_llama
from tampering import (
    IDS,
    aligned_logits,
    own_logits,
)
from torch import nn

from specdec.models.causal_lm import CausalLM
from specdec.models.execution.agreement import disagreement


def biased(module: Any) -> None:
    with torch.no_grad():
        for name, bias in module.named_parameters():
            if name.endswith("bias"):
                bias.normal_()


def without_one_bias(module: Any) -> None:
    biased(module)
    module.model.layers[1].self_attn.k_proj.bias = None
    module.model.layers[1].mlp.gate_proj.bias = None


def one_layer_less(module: Any) -> None:
    module.config.num_hidden_layers -= 1


def other_activation(module: Any) -> None:
    module.model.layers[1].mlp.act_fn = nn.GELU()


def other_scale(module: Any) -> None:
    module.model.layers[1].self_attn.scaling *= 2


def other_eps(module: Any) -> None:
    module.model.layers[1].input_layernorm.variance_epsilon = 0.5


VARIANTS: dict[str, tuple[dict[str, Any], Callable[[Any], None]]] = {
    "biases everywhere": ({"attention_bias": True, "mlp_bias": True}, biased),
    "a part without a bias": ({"attention_bias": True, "mlp_bias": True}, without_one_bias),
    "fewer layers run than there are": ({}, one_layer_less),
    "another activation in one layer": ({}, other_activation),
    "another scale in one layer": ({}, other_scale),
    "another epsilon in one norm": ({}, other_eps),
    "tied head": ({"tie_word_embeddings": True}, lambda module: None),
    "heads wider than the hidden size": ({"head_dim": 24}, lambda module: None),
    "linear rotations": (
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}},
        lambda module: None,
    ),
    "dynamic rotations": (
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        lambda module: None,
    ),
    "yarn": (
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
        lambda module: None,
    ),
}


@pytest.mark.parametrize(
    "dtype", short_only([torch.float64, torch.float32, torch.bfloat16, torch.float16], torch.float32)
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_the_family_are_fused_and_right(variant, dtype):
    settings, change = VARIANTS[variant]
    module = small_llama(0, torch.float32, **settings)
    change(module)
    model = CausalLM(module.to(dtype))
    assert model.execute("fused").name == "fused"
    theirs = own_logits(model, IDS)
    tolerance = {torch.float64: 1e-5, torch.float32: 1e-4}.get(dtype, 0.1 * float(theirs.abs().max()))
    torch.testing.assert_close(aligned_logits(model, IDS), theirs, atol=tolerance, rtol=tolerance)


SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
}


def test_joined_weights_and_biases_are_saved_as_they_were(tmp_path):
    module = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES)).eval()
    biased(module)
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    assert CausalLM(module).execute("fused").name == "fused"
    module.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in before.items())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
        ("Qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2, "head_dim": 8}),
        ("Qwen2", {"use_sliding_window": False, "sliding_window": 4}),
        ("Mistral", {"sliding_window": 4}),
        ("Llama", {"sliding_window": 4}),  # left over in the config: the model makes no window mask
    ],
)
def test_windows_are_those_that_the_family_makes(name, settings):
    """Straight from the decoder, with a window shorter than the rows that are compared."""
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **settings})
    torch.manual_seed(0)
    model = CausalLM(getattr(transformers, f"{name}ForCausalLM")(config).eval())
    execution = model.execute("fused")
    assert disagreement(execution) is None
    for layer in execution.layers:
        layer.window = 3 if layer.window is None else None
    assert "layer 0 differs" in str(disagreement(execution))
