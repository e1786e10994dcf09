"""The multi-token prediction layers inside a target's own checkpoint (DeepSeek-V3, GLM-4.5, Qwen3-Next and others).

Layers are those that `transformers` builds and loads, run eagerly on keys and values that an alignment keeps. Of one
layer, every step uses it; of several, each drafts one token (`specdec.heads.mtp_layers`).
Source: DeepSeek-V3, arXiv 2412.19437, section 2.2; names of checkpoints: `MtpModel` in transformers 5.24.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from specdec.assets import local_path
from specdec.core.outputs import NORMED
from specdec.errors import ConfigError, first_line
from specdec.heads.layers import HeadModel, target_logits
from specdec.heads.steps import Stepping
from specdec.models.causal_lm import CausalLM
from specdec.models.execution.base import Call, Execution
from specdec.models.execution.eager import StorageLayer
from specdec.models.kv import KVShape


class TargetMtp(Stepping):
    """One of the MTP layers of the target's checkpoint, by its number from 0."""

    hidden_layers = (NORMED,)

    def __init__(self, target: CausalLM, mtp: Any, number: int = 0) -> None:
        self._target, self.embed = target, mtp.embed_tokens
        execution = _MtpExecution(mtp, target, number)
        weights = sum(weight.numel() for weight in mtp.layers[number].parameters())
        output, shapes = target.module.get_output_embeddings(), _kv_shapes(mtp, target, number)
        self.model = HeadModel(target, execution, kv_shapes=shapes, num_weights=weights, output=output)

    def features(self, hidden_BTH: Tensor) -> Tensor:
        return hidden_BTH

    def inputs(self, embeds_BTD: Tensor, features_BTD: Tensor) -> Tensor:
        return torch.cat([embeds_BTD, features_BTD], dim=-1)

    def logits(self, states: Tensor) -> Tensor:
        return target_logits(self._target, states)


class _MtpExecution(Execution):
    """A layer, on the storage of a call's writer."""

    name = "eager"

    def __init__(self, mtp: Any, target: CausalLM, number: int) -> None:
        self._mtp, self._masks, self._number = mtp, target.architecture.masks, number
        self._storage = StorageLayer(0)
        self._cache = Cache(layers=[self._storage] * (number + 1))  # the layer looks for its keys by its number

    def run(self, call: Call) -> Tensor:
        self._storage.writer = call.writer
        self._storage.num_past = call.writer.num_columns - call.tokens_BT.shape[1]
        masks = self._masks(call.mask())
        states_BTD = forward(self._mtp, call.tokens_BT, call.positions(), masks, self._cache, self._number)
        self._storage.writer = None
        return states_BTD


def forward(mtp: Any, inputs_BTX: Tensor, positions_BT: Tensor, masks: Any, cache: Any, number: int = 0) -> Tensor:
    """States (B, T, D) of embeddings and hidden states side by side, by the layer of this number."""
    embeds_BTD, hidden_BTD = inputs_BTX.chunk(2, dim=-1)
    kinds = getattr(mtp.config, "layer_types", None)
    options = {"layer_type": kinds[number]} if mtp.has_per_layer_rope and kinds else {}
    rotation = None if mtp.rotary_emb is None else mtp.rotary_emb(embeds_BTD, position_ids=positions_BT, **options)
    states_BTD: Tensor = mtp.layers[number](
        embeds_BTD,
        hidden_BTD,
        position_embeddings=rotation,
        attention_mask=masks[kinds[number]] if isinstance(masks, dict) and kinds else masks,
        position_ids=positions_BT,
        cache=cache,
    )
    return mtp.shared_post_norm(states_BTD) if mtp.use_shared_post_norm else states_BTD  # type: ignore[no-any-return]


@torch.inference_mode()
def _kv_shapes(mtp: Any, target: CausalLM, number: int) -> tuple[KVShape, ...]:
    """Heads and width of the layer's keys and values, by one token."""
    cache: Any = DynamicCache()
    width = 2 * target.architecture.hidden_size
    inputs_11X = torch.zeros(1, 1, width, dtype=target.dtype, device=target.device)
    positions_11 = torch.zeros(1, 1, dtype=torch.long, device=target.device)
    forward(mtp, inputs_11X, positions_11, None, cache, number)
    parts: tuple[Any, Any] = (cache.layers[number].keys, cache.layers[number].values)
    return tuple((int(part.shape[1]), int(part.shape[3])) for part in parts)


def mtp_of(target: CausalLM, path: str) -> Any:
    """The MTP layers of the target's checkpoint.

    Raises:
        ConfigError: the folder is not the target's own, or they cannot be loaded.
    """
    own = getattr(target.module.config, "name_or_path", "")
    if Path(own).resolve() != local_path(path).resolve() and own != path:
        raise ConfigError(
            f"drafter.path={path}: the MTP layer inside a checkpoint drafts for that checkpoint alone, and the target "
            f"is {own or 'not from a folder'}: set pair.target={path}"
        )
    try:
        from transformers.modeling_layers import MtpModel
    except ImportError:
        raise ConfigError(f"drafter.path={path}: an MTP layer inside a checkpoint needs transformers 5.24") from None
    try:
        mtp: Any = MtpModel.from_pretrained(target.module, device_map={"": target.device})
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise ConfigError(f"drafter.path={path}: its MTP layer cannot be loaded: {first_line(error)[:160]}") from None
    return mtp.to(target.dtype).eval().requires_grad_(False)
