"""Drafts made like their target: a copy of the whole target accepts everything, on every architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from conftest import small_llama

from specdec.drafters.eagle import EagleLayer
from specdec.drafters.model import ModelDrafter
from specdec.models.compatibility import supported
from specdec.training import TrainingError
from specdec.training.acceptance import HeldoutPrompt, measure_acceptance
from specdec.training.config import DraftConfig, TrainConfig, ValidationConfig
from specdec.training.draft import aligned, new_draft
from specdec.training.model import load_weights, save_model

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.25,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
FAR = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**FAR, "rms_norm_eps": 1e-2, "tie_word_embeddings": True, "attention_bias": True}),
    "qwen3": ("Qwen3", {**FAR, "head_dim": 16}),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}),
    "gemma3": ("Gemma3Text", {"head_dim": 8, "sliding_window": 6, "_sliding_window_pattern": 2}),
    "mistral": ("Mistral", {**FAR, "sliding_window": 6}),
    "glm4": ("Glm4", {"head_dim": 16, "partial_rotary_factor": 0.5}),
}


def module_of(family: str) -> Any:
    """Its weights have the precision in which models are saved."""
    name, own = FAMILIES[family]
    sizes = {"vocab_size": 61, "initializer_range": 0.25} if name == "GPT2" else SIZES
    config = getattr(transformers, f"{name}Config")(**{**sizes, **own})
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).float().eval()


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in ("llama", "gpt2") else pytest.mark.slow) for name in FAMILIES]
)
def test_a_copy_of_the_whole_target_accepts_everything(family, tmp_path):
    target = supported(module_of(family), family)
    draft = new_draft(TrainConfig(draft_model=DraftConfig(num_layers=3)), target)
    save_model(draft, tmp_path)
    prompts = [HeldoutPrompt([5, 7, 11, 3, 2, 9, 1, 4][:length], "some") for length in (2, 5, 8)]
    for copied in (draft, load_weights(str(tmp_path), "start", 61)):
        found = measure_acceptance(
            target, ModelDrafter, prompts, ValidationConfig(new_tokens=24, gamma=3), aligned(copied.eval(), target)
        )
        assert found["acceptance_rate"] == 1.0
        assert found["num_drafted"] > 20


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name == "gemma3" else pytest.mark.slow) for name in FAMILIES]
)
def test_drafts_of_other_sizes_are_of_the_same_architecture(family):
    target = supported(module_of(family), family)
    config = TrainConfig(draft_model=DraftConfig(num_layers=2))
    shallow = new_draft(config, target)
    first, last = (_layer(target.module, number) for number in (0, 2))
    assert _same(_layer(shallow, 0), first)
    assert _same(_layer(shallow, 1), last)
    config.draft_model.hidden_size, config.draft_model.num_heads, config.new_draft = 24, 2, "random"
    config.draft_model.num_kv_heads = 2
    narrow = new_draft(config, target)
    assert type(narrow) is type(target.module)
    assert narrow(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 61)
    assert narrow.get_input_embeddings().weight.shape == (61, 24)
    config.new_draft = "target"
    with pytest.raises(TrainingError, match=r"draft_model.hidden_size=24: layers of the target have 32; set .*=null"):
        new_draft(config, target)


def _layer(module: Any, number: int) -> dict[str, torch.Tensor]:
    layers = next(part for part in module.modules() if isinstance(part, torch.nn.ModuleList))
    return layers[number].state_dict()


def _same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_an_eagle_layer_begins_as_the_target_s_last_layer():
    """With the same rotary frequencies and the same norm: it computes what the target does."""
    rope = {"rope_type": "default", "rope_theta": 37.0}
    target = small_llama(0, torch.float64, layers=1, rope_parameters=rope, rms_norm_eps=0.1)
    layer = EagleLayer(target).double()
    embeds = torch.randn(2, 9, 32, dtype=torch.float64)
    with torch.no_grad():
        ours, theirs = (body(inputs_embeds=embeds).last_hidden_state for body in (layer.body, target.model))
    torch.testing.assert_close(ours, theirs)
