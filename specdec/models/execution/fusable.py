"""Whether every part of a model is what the fused execution computes: an unchanged module of `transformers`.

The fused forward reads weights and calls no module, so anything else that a module does would silently be lost: an
adapter, a quantised or offloaded weight, a hook, a replaced ``forward``. Types are compared by identity (a LoRA layer
is called Linear too), in every layer, and a ``forward`` must be the one that its class was defined with.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
"""Model types, and the prefix of their class names."""
CAPTURING = "transformers.utils.output_capturing"
"""The module of the hooks by which `transformers` collects hidden states; they change nothing."""


def known(module: Any) -> bool:
    """Whether the architecture is one of the families, not split over processes."""
    return _unknown(module) is None


def can_fuse(module: Any) -> str | None:
    """Why the model cannot be fused; None if it can."""
    return _unknown(module) or _attention_of_another_kind(module) or _global_hooks() or _changed_part(module)


def windows_of(decoder: Any) -> list[int | None]:
    """The sliding window of each layer that runs, as the family's own forward makes its masks."""
    config = decoder.config
    count = config.num_hidden_layers
    if config.model_type == "llama":
        return [None] * count
    if config.model_type == "mistral":
        return [config.sliding_window] * count
    return [config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types[:count]]


def _unknown(module: Any) -> str | None:
    model_type = module.config.get_text_config().model_type
    if model_type not in FAMILIES:
        return f"it knows the architectures {', '.join(FAMILIES)}, not {model_type}"
    split = (getattr(module, "tp_size", None) or 1) > 1
    if split or any(type(part).__name__ == "DTensor" for part in module.parameters()):
        return "the weights are spread over several processes (tensor parallel)"
    return None


def _attention_of_another_kind(module: Any) -> str | None:
    """Why the attention function is not plain softmax attention: registered functions may do anything."""
    name = module.config.get_text_config()._attn_implementation
    if name == "eager" or (name == "sdpa" and ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward):
        return None
    return f"its attention is computed by {name!r}, not by transformers' eager or sdpa"


def _global_hooks() -> str | None:
    hooks = [*torch_module._global_forward_pre_hooks.values(), *torch_module._global_forward_hooks.values()]
    return f"torch holds a global forward hook ({_name(hooks[0])})" if hooks else None


def _changed_part(module: Any) -> str | None:
    for name, part, expected in _parts(module):
        reason = changed(part, expected) or no_plain_weight(part) or _elsewhere(part, module)
        if reason is not None:
            return f"{name} {reason}" if name else f"the model {reason}"
    return None


def _parts(module: Any) -> Iterator[tuple[str, Any, type]]:
    """Name, module and expected class of every module that the fused forward replaces (all but the embedding)."""
    model_type = module.config.get_text_config().model_type
    home, prefix = import_module(f"transformers.models.{model_type}.modeling_{model_type}"), FAMILIES[model_type]

    def own(suffix: str) -> type:
        found: type = getattr(home, prefix + suffix)
        return found

    yield "", module, own("ForCausalLM")
    yield "lm_head", module.lm_head, nn.Linear
    yield "model", module.model, own("Model")
    yield "model.norm", module.model.norm, own("RMSNorm")
    yield "model.rotary_emb", module.model.rotary_emb, own("RotaryEmbedding")
    for number, layer in enumerate(module.model.layers):
        names = {"": own("DecoderLayer"), "self_attn": own("Attention"), "mlp": own("MLP")}
        names |= dict.fromkeys(("input_layernorm", "post_attention_layernorm"), own("RMSNorm"))
        names |= dict.fromkeys([f"self_attn.{part}_proj" for part in "qkvo"], nn.Linear)
        names |= dict.fromkeys([f"mlp.{part}_proj" for part in ("gate", "up", "down")], nn.Linear)
        if prefix == "Qwen3":
            names |= dict.fromkeys(("self_attn.q_norm", "self_attn.k_norm"), own("RMSNorm"))
        for name, expected in names.items():
            # Outer modules first: one of another class need not have the inner ones.
            yield f"model.layers.{number}.{name}".rstrip("."), layer.get_submodule(name), expected


def changed(part: Any, expected: Any) -> str | None:
    """How a module differs from an unchanged instance of its class."""
    if type(part) is not expected:
        return f"is a {_name(type(part))}, not a {_name(expected)}"
    if not expected.__module__.startswith(("transformers.", "torch.")):
        return f"is a {_name(expected)}, in place of transformers' own"
    if expected.forward.__module__ != expected.__module__:
        return f"is a {expected.__name__} whose forward was replaced by {_name(expected.forward)}"
    if hasattr(part, "_hf_hook"):
        return "is placed or offloaded by accelerate"
    if "forward" in vars(part):
        return "has a forward of its own"
    hooks = foreign_hooks(part)
    return f"has a forward hook ({_name(hooks[0])})" if hooks else None


def foreign_hooks(part: nn.Module) -> list[Any]:
    """Forward hooks other than those by which `transformers` collects hidden states."""
    hooks = [*part._forward_pre_hooks.values(), *part._forward_hooks.values()]
    return [hook for hook in hooks if getattr(hook, "__module__", None) != CAPTURING]


def no_plain_weight(part: nn.Module) -> str | None:
    """Why a module's parameters are not plain matrices and vectors."""
    if isinstance(part, nn.Linear) and set(part._parameters) != {"weight", "bias"}:
        return "computes its weight from others (weight_norm, pruning or the like)"
    for name, weight in part._parameters.items():
        if weight is None:
            continue
        if type(weight) is not nn.Parameter or type(weight.data) is not Tensor or weight.layout != torch.strided:
            return f"has a {name} that is a {_name(type(weight))}: no plain weight"
        if name == "weight" and isinstance(part, nn.Linear) and weight.shape != (part.out_features, part.in_features):
            return f"has a weight of shape {tuple(weight.shape)}, not {(part.out_features, part.in_features)}"
    return None


def _elsewhere(part: nn.Module, module: Any) -> str | None:
    """Whether a module's weights have another device or number format than the model."""
    for name, weight in part._parameters.items():
        if weight is not None and weight.device != module.device:
            return f"has a {name} on {weight.device}, the model is on {module.device}"
        if weight is not None and weight.dtype != module.dtype:
            return f"has a {name} in {weight.dtype}, the model is in {module.dtype}"
    return None


def _name(thing: Any) -> str:
    """Where a class or function was defined, and its name."""
    kind = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{kind.__module__}.{kind.__qualname__}"
