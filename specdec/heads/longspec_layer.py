"""LongSpec's layer: attention to the last tokens, attention to the target's last keys and values, and an MLP.

It is fed the embedding of a token at the token's position, and its output predicts the next token. Keys and values of
the first attention, through a window, follow from the embeddings alone: those of the window's tokens are all that the
layer keeps. Of the second, only queries are projected: keys and values are those of the target's last layer, which has
not read the newest tokens while they are drafted. Embeddings and the head of logits are the target's.
Source: Yang et al. 2025, arXiv 2502.17421 (LongSpec).
Shape letters: B rows, T tokens fed, D hidden size, H query heads, K key heads, G = H / K, E head size, S columns seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from specdec.heads.last_layer import LastLayer, Rotation, rotated
from specdec.models.execution.fused import folded_mask, mask_levels

KeysAndValues = tuple[Tensor, Tensor]
"""(B, K, S, E) each."""


class LongSpecLayer(nn.Module):
    """Begins as the attention of the target's first layer, and the attention and MLP of its last one."""

    def __init__(self, target: Any, layer: LastLayer, window: int) -> None:
        super().__init__()
        theirs = target.config.get_text_config()
        size, inner = theirs.hidden_size, int(theirs.intermediate_size)
        self.window, self.head_dim, self.groups = window, layer.head_dim, layer.num_heads // layer.num_keys
        queries, keys = layer.num_heads * self.head_dim, layer.num_keys * self.head_dim
        self.own = _products(q_proj=(size, queries), k_proj=(size, keys), v_proj=(size, keys), o_proj=(queries, size))
        self.cross = _products(q_proj=(size, queries), o_proj=(queries, size))
        self.mlp = _products(gate_proj=(size, inner), up_proj=(size, inner), down_proj=(inner, size))
        self.own_norm, self.cross_norm, self.mlp_norm, self.norm = (
            LlamaRMSNorm(size, getattr(theirs, "rms_norm_eps", 1e-6)) for _ in range(4)
        )
        self._begin_as(layer)

    def forward(
        self,
        x_BTD: Tensor,
        rotation: Rotation,
        own_mask_BTS: Tensor,
        cross_mask_BTS: Tensor,
        target: KeysAndValues,
        write: Callable[[Tensor, Tensor], KeysAndValues] = lambda keys, values: (keys, values),
    ) -> Tensor:
        """The states (B, T, D) that the target's head makes logits of.

        Args:
            own_mask_BTS, cross_mask_BTS: bool, which columns each token sees.
            target: keys and values of the target's last layer.
            write: stores keys and values (B, K, T, E) of these tokens, and returns all that they see.
        """
        normed_BTD = self.own_norm(x_BTD)
        queries = rotated(self._heads(self.own["q_proj"], normed_BTD), rotation)
        seen = write(*self.keys_and_values(normed_BTD, rotation))
        x_BTD = x_BTD + self.own["o_proj"](self._attended(queries, seen, own_mask_BTS))
        queries = rotated(self._heads(self.cross["q_proj"], self.cross_norm(x_BTD)), rotation)
        x_BTD = x_BTD + self.cross["o_proj"](self._attended(queries, target, cross_mask_BTS))
        normed_BTD = self.mlp_norm(x_BTD)
        inner_BTX = silu(self.mlp["gate_proj"](normed_BTD)) * self.mlp["up_proj"](normed_BTD)
        states_BTD: Tensor = self.norm(x_BTD + self.mlp["down_proj"](inner_BTX))
        return states_BTD

    def keys_and_values(self, normed_BTD: Tensor, rotation: Rotation) -> KeysAndValues:
        """(B, K, T, E) each, of embeddings after ``own_norm``."""
        keys, values = (self._heads(self.own[name], normed_BTD) for name in ("k_proj", "v_proj"))
        return rotated(keys, rotation), values

    def _heads(self, product: nn.Module, x_BTD: Tensor) -> Tensor:
        heads_BHTE: Tensor = product(x_BTD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        return heads_BHTE

    def _attended(self, q_BHTE: Tensor, seen: KeysAndValues, mask_BTS: Tensor) -> Tensor:
        """(B, T, H E): queries are folded by key head, so that no key is repeated for the heads that share it."""
        num_rows, _, count, _ = q_BHTE.shape
        folded = q_BHTE.reshape(num_rows, -1, self.groups * count, self.head_dim)
        mask = folded_mask(mask_BTS, self.groups, mask_levels(q_BHTE.dtype, q_BHTE.device))
        keys, values = seen
        mixed = scaled_dot_product_attention(folded, keys.to(folded.dtype), values.to(folded.dtype), attn_mask=mask)
        return mixed.reshape(num_rows, -1, count, self.head_dim).transpose(1, 2).flatten(2)

    @torch.no_grad()
    def _begin_as(self, layer: LastLayer) -> None:
        first, last = layer.first, layer.last
        products = ((self.own, first.self_attn), (self.cross, last.self_attn), (self.mlp, getattr(last, "mlp", None)))
        parts: list[tuple[Any, Any]] = [
            (part, getattr(of, name, None)) for ours, of in products for name, part in ours.items()
        ]
        for part, theirs in parts:
            if (weight := getattr(theirs, "weight", None)) is not None and weight.shape == part.weight.shape:
                part.weight.copy_(weight)
        norms: list[tuple[Any, Any]] = [
            (self.own_norm, first.input_layernorm),
            (self.cross_norm, last.input_layernorm),
            (self.mlp_norm, getattr(last, "post_attention_layernorm", last.input_layernorm)),
            (self.norm, layer.norm),
        ]
        for norm, theirs in norms:
            ones_D = torch.ones_like(norm.weight).to(first.self_attn.q_proj.weight)
            norm.weight.copy_(theirs(ones_D))  # its scale, in whichever form the norm keeps it


def _products(**sizes: tuple[int, int]) -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Linear(inputs, outputs, bias=False) for name, (inputs, outputs) in sizes.items()})
