"""A small random model of every causal architecture that the installed `transformers` can build."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import model_sizes as sizes
import torch
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

GAIN = 1.5
"""Standard deviation of what a random matrix makes of a normalised vector: attention is peaked, logits are not flat."""


@dataclass(frozen=True)
class Entry:
    """One row of the table."""

    model_type: str
    variant: str = ""

    @property
    def name(self) -> str:
        """As the table shows it."""
        return f"{self.model_type} ({self.variant})" if self.variant else self.model_type


def entries() -> list[Entry]:
    """Every model type that AutoModelForCausalLM knows, with its variants."""
    return [
        Entry(model_type, variant)
        for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        for variant in ("", *sizes.VARIANTS.get(model_type, {}))
    ]


def make_config(entry: Entry, **changes: Any) -> Any:
    """The small config of an entry; ``changes`` are made to the settings of its text model."""
    own = sizes.OWN.get(entry.model_type, {}) | sizes.VARIANTS.get(entry.model_type, {}).get(entry.variant, {})
    config_class = type(AutoConfig.for_model(entry.model_type, **own.get("default", {})))
    settings = _settings(config_class, entry.model_type, own, changes)
    config = config_class(**settings)
    model_class = _class_of(config_class)
    if type(config).sub_configs.get("text_config") is model_class.config_class:
        config = config.get_text_config()
    return config


def _settings(config_class: type, model_type: str, own: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    default = config_class(**own.get("default", {}))
    parts = getattr(config_class, "sub_configs", None) or {}
    settings = _shrunk(default, model_type) if "text_config" not in parts else {}
    for name, part in parts.items():
        if getattr(default, name, None) is None or isinstance(part, str):
            continue
        part_default = getattr(default, name)
        part_own = own.get(name, {})
        settings[name] = _shrunk(part_default, part_default.model_type) | part_own
        settings[name]["model_type"] = part_default.model_type
    target = settings["text_config"] if "text_config" in parts else settings
    if "text_config" in parts:
        settings |= _neutral(default, model_type)
        target |= own.get("text", {})
    settings |= {k: v for k, v in own.items() if k not in parts and k not in ("default", "text")}
    target |= changes
    return settings


def _shrunk(default: Any, model_type: str) -> dict[str, Any]:
    known = vars(default)
    settings = {name: value for name, value in sizes.SMALL.items() if known.get(name) is not None}
    settings |= _neutral(default, model_type)
    if "qk_rope_head_dim" in known and "head_dim" in known:
        settings["head_dim"] = settings["qk_rope_head_dim"]
    rope = known.get("rope_parameters")
    if isinstance(rope, dict):
        settings["rope_parameters"] = _short_rope(rope)
    return settings | _layers(known)


def _neutral(default: Any, model_type: str) -> dict[str, Any]:
    known = vars(default)
    settings = {name: value for name, value in sizes.NEUTRAL.items() if name in known}
    if "pad_token_id" in known:
        settings["pad_token_id"] = 1 if model_type in sizes.PADDED else None
    return settings


def _short_rope(rope: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _short_rope(value)
        if isinstance(value, dict)
        else sizes.ORIGINAL
        if key == "original_max_position_embeddings"
        else value
        for key, value in rope.items()
    }


def _layers(known: dict[str, Any]) -> dict[str, Any]:
    """As many layers as show every kind of them, and the lists that say which layer is of which kind."""
    counts = [name for name in sizes.LAYER_COUNTS if isinstance(known.get(name), int)]
    if not counts:
        return {}
    total = known[counts[0]]
    lists = {name: list(known[name]) for name in sizes.PER_LAYER if isinstance(known.get(name), (list, tuple))}
    lists = {name: values for name, values in lists.items() if len(values) == total}
    if not lists:
        return dict.fromkeys(counts, sizes.FEWEST_LAYERS)
    kinds = list(dict.fromkeys(zip(*map(tuple, lists.values()), strict=True)))[: sizes.MOST_LAYERS]
    while len(kinds) < sizes.FEWEST_LAYERS:
        kinds = kinds * 2
    short = {name: [kind[i] for kind in kinds] for i, name in enumerate(lists)}
    return dict.fromkeys(counts, len(kinds)) | short


def _class_of(config_class: type) -> Any:
    found = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    return found[0] if isinstance(found, (list, tuple)) else found


def build(entry: Entry, seed: int = 0, **changes: Any) -> Any:
    """The model, its weights drawn from ``seed`` alone."""
    config = make_config(entry, **changes)
    model_class = _class_of(type(config)) if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else None
    assert model_class is not None, f"no causal model for {type(config).__name__}"
    torch.manual_seed(seed)
    module = model_class(config).to(torch.float32).eval()
    randomise(module, seed)
    return module


@torch.no_grad()
def randomise(module: Any, seed: int) -> None:
    """Weights that make something of their input; biases, norms and other vectors are moved from what they are."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in _parameters(module):
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight.dtype)
        if weight.dim() < 2:
            weight.add_(0.2 * noise)
        elif "emb" in name or "wte" in name or "wpe" in name or "head" in name:
            weight.copy_(noise * (GAIN / math.sqrt(weight.shape[-1]) if "head" in name else 0.7))
        elif weight.dim() == 2:
            weight.copy_(noise * GAIN / math.sqrt(max(weight.shape[1], 4)))
        elif weight.dim() == 3 and min(weight.shape[-2:]) > 1:
            weight.copy_(noise * GAIN / math.sqrt(sum(weight.shape[-2:]) / 2))
        else:
            weight.add_(0.2 * noise)


def _parameters(module: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name, weight in module.named_parameters():
        if weight.is_floating_point() and weight.numel():
            yield name, weight
