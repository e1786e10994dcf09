"""A small random model of every causal architecture that the installed `transformers` can build."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import model_sizes as sizes
import torch
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

GAIN = 2.5
"""Standard deviation of what a random matrix makes of a normalised vector: attention is peaked, outputs vary."""
HEAD, TOKEN, POSITION, VECTOR = 1.5, 0.7, 1.5, 0.2
"""The same for the output layer; of a token's and a position's embedding; by how much biases and norms are moved."""


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
    """The small config that the model class of an entry takes; ``changes`` are made to its text model's settings."""
    own = sizes.OWN.get(entry.model_type, {}) | sizes.VARIANTS.get(entry.model_type, {}).get(entry.variant, {})
    default = AutoConfig.for_model(entry.model_type, **own.get("default", {}))
    if _class_of(entry).config_class is getattr(default, "sub_configs", {}).get("text_config"):
        settings = _shrunk(default.text_config) | own.get("text", {}) | changes  # as AutoModelForCausalLM does
        return type(default.text_config)(**settings)
    return type(default)(**_settings(default, own, changes))


def _settings(default: Any, own: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The settings of a config, those of its parts as dictionaries."""
    parts = {name: getattr(default, name, None) for name in getattr(default, "sub_configs", None) or {}}
    settings = _neutral(default) if "text_config" in parts else _shrunk(default)
    for name, part in parts.items():
        if part is not None:
            settings[name] = _shrunk(part) | {"model_type": part.model_type} | own.get(name, {})
    target = settings.get("text_config", settings)
    target |= own.get("text", {})
    settings |= {name: value for name, value in own.items() if name not in (*parts, "default", "text")}
    target |= changes
    return settings


def _shrunk(default: Any) -> dict[str, Any]:
    known = vars(default)
    settings = {name: value for name, value in sizes.SMALL.items() if known.get(name) is not None}
    settings |= _neutral(default)
    if "qk_rope_head_dim" in known and "head_dim" in known:
        settings["head_dim"] = settings["qk_rope_head_dim"]
    if "kv_lora_rank" in known and "num_key_value_heads" in settings:  # every head has keys of its own
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    rope = known.get("rope_parameters")
    if isinstance(rope, dict):
        settings["rope_parameters"] = _short_rope(rope)
    return settings | _layers(known)


def _neutral(default: Any) -> dict[str, Any]:
    """No special tokens where the config can do without."""
    known, kinds = vars(default), {field.name: str(field.type) for field in dataclasses.fields(default)}
    settings = {name: value for name, value in sizes.NEUTRAL.items() if name in known}
    for name in known:
        if name in ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id"):
            settings[name] = None if "None" in kinds.get(name, "None") else 0
    if default.model_type in sizes.PADDED:
        settings["pad_token_id"] = sizes.PADDED[default.model_type]
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


def _class_of(entry: Entry) -> Any:
    """The class that AutoModelForCausalLM chooses."""
    found = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[entry.model_type]]
    return found[0] if isinstance(found, (list, tuple)) else found


def build(entry: Entry, seed: int = 0, **changes: Any) -> Any:
    """The model, its weights drawn from ``seed`` alone."""
    config = make_config(entry, **changes)
    torch.manual_seed(seed)
    module = _class_of(entry)(config).to(torch.float32).eval()
    randomise(module, seed)
    module.generation_config.eos_token_id = None
    return module


@torch.no_grad()
def randomise(module: Any, seed: int) -> None:
    """Weights that make something of their input, whatever the model's own initialisation is."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in _parameters(module):
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight.dtype)
        if weight.dim() < 2 or (weight.dim() > 2 and min(weight.shape[-2:]) == 1):
            weight.add_(VECTOR * noise)
        else:
            weight.copy_(_scale(name, weight) * noise)


def _scale(name: str, weight: torch.Tensor) -> float:
    if "position" in name or "wpe" in name:
        return POSITION
    if "emb" in name or "wte" in name:
        return TOKEN
    inputs = weight.shape[-1] if weight.dim() == 2 else sum(weight.shape[-2:]) / 2  # experts: either side first
    return (HEAD if "head" in name else GAIN) / math.sqrt(max(inputs, 4))


def _parameters(module: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name, weight in module.named_parameters():
        if weight.is_floating_point() and weight.numel():
            yield name, weight
