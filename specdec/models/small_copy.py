"""A small random copy of a model's architecture: the same class and switches, few layers, small widths, low limits.

Windows, chunks, attention scales and original context lengths become a few tokens (a different number each), so that a
short row exceeds all of them; what decides the arithmetic (layer types, norms, gates, routing, rotations) stays.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

NUM_LAYERS = 8  # the first layers; others only if their kind does not occur among these
CONTEXT, ORIGINAL, VOCAB = 64, 32, 128
LARGEST = 50_000_000  # weights of a copy that keeps its widths
OUT_OF_REACH = 1000  # tokens: more than is ever fed to a miniature
HEAD_DIM, MLP = 16, 48
LIMITS = {
    "floor_scale": 11,
    "sliding_window": 7,
    "attention_chunk_size": 9,
    "window_size": 6,
    "index_topk": 8,
    "keep_window_size": 10,
    "original_max_position_embeddings": ORIGINAL,
}
"""Fields with an effect only past some distance or position, and their values in the copy."""

_WIDTHS = {
    "head_dim": HEAD_DIM,
    "global_head_dim": 2 * HEAD_DIM,
    "v_head_dim": 12,
    "qk_nope_head_dim": HEAD_DIM,
    "qk_rope_head_dim": 8,
    "kv_lora_rank": 20,
    "q_lora_rank": 24,
    "rotary_dim": 8,
    "swa_head_dim": HEAD_DIM,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "num_experts_per_token": 2,
    "top_k": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 8,
    "vocab_size": VOCAB,
    "vocab_size_per_layer_input": VOCAB,
    "max_position_embeddings": CONTEXT,
    "original_max_position_embeddings": ORIGINAL,
    "index_head_dim": HEAD_DIM,
    "index_n_heads": 16,
}
"""Upper bounds of sizes in the copy."""

_MLP = re.compile(r"intermediate|ffn_dim|n_inner|d_ff$|d_mlp|ffn_hidden")
_EARLY = re.compile(r"window|chunk_size|floor_scale|local_attention")


def miniature(module: Any, keep_width: bool = False, lifted: tuple[str, ...] = ()) -> Any:
    """A small float32 model on the CPU of the same class as ``module``, with random weights of visible effect.

    Args:
        keep_width: lower only the number of layers, the vocabulary and the limits, not the widths.
        lifted: limits that are raised out of reach instead of lowered.

    Raises:
        Exception: the class does not support such sizes.
    """
    inner = unwrapped(module)
    config = small_config(inner.config, keep_width, lifted)
    config._attn_implementation = inner.config._attn_implementation
    if keep_width:
        with torch.device("meta"):
            size = sum(weight.numel() for weight in type(inner)(config).parameters())
        if size > LARGEST:
            raise ValueError(f"its widths cannot be lowered, and {size:,} weights are too many to try")
    with quiet(), torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        copied = type(inner)(config).float().eval()
        _spread(copied)
    return copied


def unwrapped(module: Any) -> Any:
    """The model of `transformers` inside the wrapper of an adapter (PEFT) or of torch.compile."""
    while True:
        if hasattr(module, "get_base_model"):
            module = module.get_base_model()
        elif hasattr(module, "_orig_mod"):
            module = module._orig_mod
        else:
            return module


def small_config(config: Any, keep_width: bool = False, lifted: tuple[str, ...] = ()) -> Any:
    """A copy of a config with the sizes of the small copy."""
    small = copy.deepcopy(config)
    for part in _parts(small):
        if isinstance(field(part, "num_hidden_layers"), int):
            _shorten(part)
            if not keep_width:
                _narrow(part)
        _limit(part, lifted)
    return small


def field(config: Any, name: str) -> Any:
    """A field's value; None if the config has none, or one per layer."""
    try:
        return getattr(config, name, None)
    except Exception:  # configs whose layers differ raise their own type of error
        return None


def _parts(config: Any) -> Iterator[Any]:
    """The config, and those of the models inside it."""
    yield config
    for value in vars(config).values():
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            yield from _parts(value)


def _shorten(config: Any) -> None:
    """Keep the first layers, and the first layer of every other kind."""
    total: int = config.num_hidden_layers
    fields = _fields(config)
    sequences = {name: value for name, value in fields.items() if isinstance(value, (list, tuple))}
    numbers = {name: value for name, value in sequences.items() if _are_layers(value, total)}
    lists = {name: value for name, value in sequences.items() if len(value) == total and name not in numbers}
    kinds = [tuple(str(value[layer]) for value in lists.values()) for layer in range(total)]
    chosen = list(range(min(total, NUM_LAYERS)))
    spec = getattr(config, "_heterogeneity_spec", None)  # settings of single layers, by their number
    for layer in range(NUM_LAYERS, total if spec is None else 0):
        if kinds[layer] not in {kinds[other] for other in chosen}:
            chosen.append(layer)
    config.num_hidden_layers = len(chosen)
    for name, value in lists.items():
        setattr(config, name, type(value)(value[layer] for layer in chosen))
    for name, value in numbers.items():
        setattr(config, name, [layer for layer in value if layer < len(chosen)])
    for name in ("num_kv_shared_layers", "max_window_layers"):
        count = fields.get(name)
        if isinstance(count, int) and count >= len(chosen):
            setattr(config, name, len(chosen) // 2)


def _are_layers(value: list[Any] | tuple[Any, ...], total: int) -> bool:
    """Whether a list names layers by their numbers."""
    whole = all(isinstance(layer, int) and not isinstance(layer, bool) for layer in value)
    return whole and len(value) > 1 and sorted(set(value)) == list(value) and value[-1] < total


def _narrow(config: Any) -> None:
    """Lower the number and width of heads, the MLPs and the experts; ratios that decide code paths stay."""
    fields = _fields(config)
    heads, wide, head_dim = fields.get("num_attention_heads"), fields.get("hidden_size"), fields.get("head_dim")
    kv_heads = fields.get("num_key_value_heads") or heads
    if isinstance(heads, int) and isinstance(kv_heads, int):
        new_kv = min(kv_heads, 2)
        new_heads = new_kv * min(max(heads // kv_heads, 1), 2 if new_kv > 1 else 4)
        for name, value in fields.items():
            if name.startswith("num") and name.endswith("_heads") and isinstance(value, int) and value > 1:
                setattr(config, name, new_heads if value == heads else min(value, new_kv))
        loose = isinstance(head_dim, int) and heads * head_dim != wide
        config.hidden_size = 4 * HEAD_DIM if loose else new_heads * HEAD_DIM
    for name, value in fields.items():
        small = _small(name, value, fields)
        if small is not None:
            setattr(config, name, small)
    for layer in _overrides(config).values():
        for name, value in layer.items():
            small = _small(name, value, fields)
            if small is not None:  # a size that is larger in this layer stays larger
                layer[name] = 2 * small if value > fields.get(name, value) else small


def _small(name: str, value: Any, fields: dict[str, Any]) -> Any:
    """The lowered width; None if it stays."""
    if isinstance(value, bool):
        return None
    if name == "head_dim" and value is not None and value == fields.get("qk_rope_head_dim"):
        name = "qk_rope_head_dim"  # head_dim is then the size of the rotated part
    if name in _WIDTHS and isinstance(value, int):
        return min(value, _WIDTHS[name])
    if _MLP.search(name) and isinstance(value, int):
        return min(value, MLP)
    if _MLP.search(name) and isinstance(value, (list, tuple)):
        return [min(size, MLP) for size in value]
    return None


def _overrides(config: Any) -> dict[int, dict[str, Any]]:
    """Settings of single layers, by their number."""
    spec = getattr(config, "_heterogeneity_spec", None)
    layers: dict[int, dict[str, Any]] = getattr(spec, "per_layer_overrides", {})
    for layer in [number for number in layers if number >= config.num_hidden_layers]:
        del layers[layer]
    return layers


def _limit(config: Any, lifted: tuple[str, ...]) -> None:
    """Lower all limits, and replace special tokens that the small vocabulary lacks."""
    fields = _fields(config)
    for name, value in fields.items():
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            if name in lifted:
                setattr(config, name, max(value, OUT_OF_REACH))
            elif name in LIMITS or _EARLY.search(name):
                setattr(config, name, min(value, LIMITS.get(name, 8)))
            elif name in ("vocab_size", "max_position_embeddings", "original_max_position_embeddings"):
                setattr(config, name, min(value, _WIDTHS[name]))
        if name.endswith("_token_id") and isinstance(value, int) and value >= VOCAB:
            setattr(config, name, VOCAB - 1)
        if name.endswith("_token_id") and isinstance(value, (list, tuple)):
            setattr(config, name, [min(token, VOCAB - 1) for token in value])
    half = _rotated(config) // 2
    for rope in _ropes(config):
        if rope.get("original_max_position_embeddings"):
            rope["original_max_position_embeddings"] = min(rope["original_max_position_embeddings"], ORIGINAL)
        for name in ("short_factor", "long_factor"):
            if rope.get(name):
                rope[name] = list(rope[name])[:half]
        if rope.get("mrope_section"):
            rope["mrope_section"] = [half - 2 * (half // 3), half // 3, half // 3]


def _ropes(config: Any) -> list[dict[str, Any]]:
    """Rotation settings: one dict, or one per kind of layer."""
    rope = field(config, "rope_parameters") or {}
    return [part for part in (rope, *rope.values()) if isinstance(part, dict)]


def _rotated(config: Any) -> int:
    """How many numbers of a head are rotated."""
    heads, size = field(config, "num_attention_heads"), field(config, "head_dim")
    size = size or (config.hidden_size // heads if isinstance(heads, int) else HEAD_DIM)
    rope = field(config, "rope_parameters") or {}
    share = rope.get("partial_rotary_factor") or field(config, "partial_rotary_factor") or 1.0
    return int((field(config, "qk_rope_head_dim") or size) * share)


def _fields(config: Any) -> dict[str, Any]:
    """The config's own fields under the names that the models read."""
    aliases = {own: common for common, own in type(config).attribute_map.items()}
    return {aliases.get(name, name): value for name, value in vars(config).items() if not name.startswith("_")}


@torch.no_grad()
def _spread(module: Any) -> None:
    """Draw weights with which attention is selective and logits differ; those of an untrained model are nearly flat.

    So a key that is wrongly masked, or of another row, changes the logits.
    """
    for name, weight in module.named_parameters():
        if weight.dim() >= 2:
            weight.normal_(std=1.5 * weight.shape[-1] ** -0.5)
        elif name.endswith("bias"):
            weight.normal_(std=0.1)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings of `transformers` about the sizes of the small copy."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
