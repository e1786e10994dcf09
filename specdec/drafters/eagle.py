"""The EAGLE-style layer that train.py trains beside a target, also as a model; `specdec.heads.eagle` drafts with it.

Source: Li et al. 2024, arXiv 2401.15077 (EAGLE); trained on its own outputs as in arXiv 2503.01840 (EAGLE-3).
Shape letters: B rows, T entries fed, D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from specdec.models.causal_lm import CausalLM
from specdec.models.tensor_parallel import whole


class EagleLayer(nn.Module):
    """A projection of (token embedding, hidden state) to the hidden size, one decoder layer, and a norm."""

    def __init__(self, target: Any) -> None:
        super().__init__()
        theirs = target.config.get_text_config()
        shared = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
        shape = {name: value for name in shared if (value := getattr(theirs, name, None)) is not None}
        config: Any = LlamaConfig(
            vocab_size=1,  # the embeddings are the target's
            num_hidden_layers=1,
            max_position_embeddings=theirs.max_position_embeddings,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
            **rope_and_norm(theirs),
            **shape,
        )
        config._attn_implementation = "sdpa"
        self.body = LlamaModel(config)
        self.body.embed_tokens = nn.Identity()  # type: ignore[assignment]
        self.project = nn.Linear(2 * theirs.hidden_size, theirs.hidden_size, bias=False)
        with torch.no_grad():
            self.project.weight[:, theirs.hidden_size :] += torch.eye(theirs.hidden_size)
        _copy_where_alike(self.body, target)

    def inputs(self, embeds_BTD: Tensor, hidden_BTD: Tensor) -> Tensor:
        """What the layer reads, (B, T, D)."""
        projected: Tensor = self.project(torch.cat([embeds_BTD, hidden_BTD], dim=-1))
        return projected


def as_causal(layer: EagleLayer, target: CausalLM) -> CausalLM:
    """The layer with the target's head, as a model whose cache an alignment can hold."""
    shell = LlamaForCausalLM(layer.body.config)
    shell.model = layer.body
    shell.lm_head = target.module.get_output_embeddings()
    config: Any = layer.body.config
    shape = (config.num_key_value_heads, config.head_dim)
    model = CausalLM(shell, kv_shapes=(shape, shape))  # it is fed embeddings: no id could be tried
    model.observers = target.observers
    model.vocab_size = target.vocab_size
    return model


def rope_and_norm(theirs: Any) -> dict[str, Any]:
    """The target's rotary positions (those of its full attention, if layers differ) and the constant of its norms."""
    rope = getattr(theirs, "rope_parameters", None) or {}
    if any(isinstance(part, dict) for part in rope.values()):
        rope = rope.get("full_attention") or next(iter(rope.values()))
    rope = {name: value for name, value in rope.items() if name != "partial_rotary_factor"}
    eps = getattr(theirs, "rms_norm_eps", None) or getattr(theirs, "layer_norm_epsilon", None)
    return {**({"rope_parameters": rope} if rope else {}), **({"rms_norm_eps": eps} if eps else {})}


def _copy_where_alike(body: Any, target: Any) -> None:
    """Copy the target's last layer and norm, where they are of the same kind and shape."""
    decoder: Any = getattr(target, target.base_model_prefix, None)
    if getattr(decoder, "layers", None) is None or getattr(decoder, "norm", None) is None:
        return
    for ours, theirs in ((body.layers[0], decoder.layers[-1]), (body.norm, decoder.norm)):
        state = {name: whole(value) for name, value in theirs.state_dict().items()}
        shapes = {name: value.shape for name, value in ours.state_dict().items()}
        if shapes == {name: value.shape for name, value in state.items()}:
            ours.load_state_dict(state)
