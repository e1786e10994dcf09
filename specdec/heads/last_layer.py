"""The keys and values of the target's last layer, made of the hidden states that enter it.

A head that attends to them keeps a copy of its own, one layer's keys and values per token: how an alignment lays its
cache out, and what an execution leaves in it, does not matter then. The layer's own modules compute them.
Shape letters: B rows, T tokens, D hidden size, K key heads, E head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from specdec.errors import SpecdecError
from specdec.models.cache_argument import cache_argument, returned_cache

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines (B, T, E) of positions."""
_TRIED_TOKENS = 4
_TOLERANCE = 1e-2
"""Relative, of all numbers together: rounding in bfloat16 is below, a norm or a rotation of another kind far above."""


class LastLayer:
    """The last decoder layer of a target whose layers are like a Llama's.

    Args:
        setting: names who asks, in errors.

    Raises:
        SpecdecError: the layer makes its keys and values in another way, by a trial on a few tokens.
    """

    def __init__(self, target: Any, setting: str) -> None:
        try:
            decoder = getattr(target, target.base_model_prefix)
            layers = decoder.layers[: target.config.get_text_config().num_hidden_layers]
            self.first, self.last, self.norm, self._rotary = layers[0], layers[-1], decoder.norm, decoder.rotary_emb
            self.head_dim = int(self.last.self_attn.head_dim)
            self.num_heads, self.num_keys = (
                part.out_features // self.head_dim for part in (self.last.self_attn.q_proj, self.last.self_attn.k_proj)
            )
            agrees = self.num_heads % self.num_keys == 0 and self._agrees(target)
        except (AttributeError, RuntimeError, TypeError, ValueError, KeyError, IndexError):
            agrees = False
        if not agrees:
            raise SpecdecError(
                f"{setting}: it attends to the keys and values of the target's last layer, and those of "
                f"{type(target).__name__} are not made as a Llama's are; choose another head"
            )

    def rotation(self, x_BTD: Tensor, positions_BT: Tensor) -> Rotation:
        """The target's own."""
        cos_BTE, sin_BTE = self._rotary(x_BTD, positions_BT)
        return cos_BTE, sin_BTE

    def keys_and_values(self, hidden_BTD: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, T, E) each, of the layer's inputs (before its norm)."""
        attention = self.last.self_attn
        normed_BTD = self.last.input_layernorm(hidden_BTD)
        products = (attention.k_proj, attention.v_proj)
        keys, values = (part(normed_BTD).unflatten(-1, (-1, self.head_dim)) for part in products)
        keys = attention.k_norm(keys) if hasattr(attention, "k_norm") else keys
        return rotated(keys.transpose(1, 2), self.rotation(hidden_BTD, positions_BT)), values.transpose(1, 2)

    @torch.inference_mode()
    def _agrees(self, target: Any) -> bool:
        """Whether the target's own cache holds the same."""
        ids_1T = torch.arange(_TRIED_TOKENS, device=target.device)[None]
        output = target(input_ids=ids_1T, output_hidden_states=True, **cache_argument(target, DynamicCache()))
        kept = returned_cache(output).layers[-1]
        made = self.keys_and_values(output.hidden_states[-2], ids_1T)
        pairs = zip(made, (kept.keys, kept.values), strict=True)
        return all(
            ours.shape == theirs.shape and float((ours - theirs).norm()) <= _TOLERANCE * float(theirs.norm())
            for ours, theirs in pairs
        )


def rotated(x_BHTE: Tensor, rotation: Rotation) -> Tensor:
    """Queries or keys at their positions."""
    cos_B1TE, sin_B1TE = (angles[:, None] for angles in rotation)
    first, second = x_BHTE.chunk(2, dim=-1)
    return x_BHTE * cos_B1TE + torch.cat([-second, first], dim=-1) * sin_B1TE
