"""What trained heads of published layouts share: their sizes, their beginning as a part of the target, their folder.

Shape letters: D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig

from specdec.assets import named
from specdec.drafters.eagle import rope_and_norm
from specdec.drafters.early_exit import final_norm
from specdec.heads.export import save_head
from specdec.heads.spec import SPECULATORS, HeadSpec
from specdec.models.causal_lm import CausalLM
from specdec.models.tensor_parallel import whole
from specdec.training import TrainingError

_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
_OF_LAYERS = (*_SIZES, "vocab_size", "num_hidden_layers", "max_position_embeddings", "rms_norm_eps", "rope_parameters")
_NOT_SAVED = ("rotary", "temperatures")


def config_of(target: Any, num_layers: int) -> LlamaConfig:
    """Layers with the target's sizes, rotary positions and constant of norms."""
    theirs = target.config.get_text_config()
    shape = {name: value for name in _SIZES if (value := getattr(theirs, name, None)) is not None}
    shape.setdefault("intermediate_size", 4 * theirs.hidden_size)
    config = LlamaConfig(
        vocab_size=theirs.vocab_size,
        num_hidden_layers=num_layers,
        max_position_embeddings=theirs.max_position_embeddings,
        **{**shape, **rope_and_norm(theirs)},
    )
    config._attn_implementation = "sdpa"
    return config


def layers_read(target: Any, layer_ids: list[int] | None) -> list[int]:
    """The layers whose inputs are read; their number stands for the last output.

    Raises:
        TrainingError: there are no such layers.
    """
    count = target.config.get_text_config().num_hidden_layers
    chosen = layer_ids or [min(2, count), count // 2, max(count - 3, 0)]
    if not all(0 <= number <= count for number in chosen):
        raise TrainingError(f"heads.layer_ids={chosen}: give numbers from 0 to {count}, the target's layers")
    return chosen


@torch.no_grad()
def begin_as(target: Any, fc: nn.Linear, layers: Iterable[nn.Module], norm: nn.Module) -> None:
    """Copy what there is of the target's last layers and norm; ``fc`` passes the last of the hidden states on.

    In a layer that reads an embedding and a hidden state side by side, the products read the hidden state.
    """
    decoder, name = final_norm(target)
    stack = next((part for part in decoder.children() if isinstance(part, nn.ModuleList)), nn.ModuleList())
    size, ours = fc.out_features, list(layers)
    fc.weight.mul_(0.1)[:, -size:] += torch.eye(size)
    for layer, theirs in zip(ours, list(stack)[-len(ours) :], strict=False):
        known = dict(theirs.named_parameters())
        for key, own in layer.named_parameters():
            split = known.get(key.replace("hidden_norm", "input_layernorm"))
            weight = None if split is None else whole(split)
            if weight is not None and weight.shape == own.shape:
                own.copy_(weight)
            elif weight is not None and weight.shape == (own.shape[0], size) and own.shape[1:] == (2 * size,):
                own[:, size:].copy_(weight)
                own[:, :size].mul_(0.1)
    if (weight := getattr(getattr(decoder, name), "weight", None)) is not None:
        norm.weight.copy_(weight)  # type: ignore[operator]


def mask_token(target: Any) -> int:
    """The token that stands for one that is not known: the padding, or the last of the vocabulary."""
    theirs = target.config.get_text_config()
    return int(theirs.vocab_size - 1 if theirs.pad_token_id is None else theirs.pad_token_id)


def save_published(
    folder: Path, kind: str, module: Any, target: CausalLM, own: dict[str, Any], num_drafted: int, **layer: Any
) -> None:
    """Write a head in the layout of `speculators`.

    Args:
        own: settings of its kind. layer: settings of its layers in which they are no Llama's.
    """
    config, theirs = module.config.to_dict(), target.module.config
    own = {**own, "target_hidden_size": target.architecture.hidden_size}
    if module.tokens.d2t is not None:
        own["draft_vocab_size"] = len(module.tokens.d2t)
    verifier = {
        "name_or_path": named(theirs.name_or_path or "") or None,
        "architectures": [type(target.module).__name__],
    }
    spec = HeadSpec(str(folder), kind, SPECULATORS, own, {**{key: config[key] for key in _OF_LAYERS}, **layer}, {})
    weights = {key.removeprefix("tokens."): value for key, value in module.state_dict().items()}
    weights = {key: value for key, value in weights.items() if not key.startswith(_NOT_SAVED)}
    save_head(folder, spec, weights, num_drafted=num_drafted, verifier=verifier)
