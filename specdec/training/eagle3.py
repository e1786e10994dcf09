"""Training of EAGLE-3: a decoder layer over (token embedding, hidden states of three layers of the target).

Every step of the unrolled training continues from the outputs of the step before, as drafting does, and only the
distributions of tokens are learned, no hidden states (training-time test).
Source: Li et al. 2025, arXiv 2503.01840 (EAGLE-3). The names of the weights are those of `speculators`.
Shape letters: B rows, T entries, D hidden size, H hidden states that are read, X inputs of the attention, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

from specdec.drafters.trained import plain_head
from specdec.models.causal_lm import CausalLM
from specdec.training.blocks import Batch
from specdec.training.config import HeadsConfig, LossConfig
from specdec.training.draft_tokens import ReducibleHead
from specdec.training.losses import LossSum, masked_sum
from specdec.training.published import begin_as, config_of, layers_read, save_published
from specdec.training.recompute import recomputed
from specdec.training.teacher import read_target
from specdec.training.unrolled import unrolled_mask

KeysAndValues = tuple[Tensor, Tensor]


class Eagle3Layer(nn.Module):
    """A Llama layer whose attention reads an embedding and a hidden state side by side; it adds to the latter."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        size, heads, keys = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.head_dim = int(config.head_dim or size // heads)
        assert heads is not None
        assert keys is not None
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(2 * size, heads * self.head_dim, bias=False),
                "k_proj": nn.Linear(2 * size, keys * self.head_dim, bias=False),
                "v_proj": nn.Linear(2 * size, keys * self.head_dim, bias=False),
                "o_proj": nn.Linear(heads * self.head_dim, size, bias=False),
            }
        )
        self.mlp = LlamaMLP(config)
        eps = config.rms_norm_eps
        self.input_layernorm, self.hidden_norm = LlamaRMSNorm(size, eps), LlamaRMSNorm(size, eps)
        self.post_attention_layernorm = LlamaRMSNorm(size, eps)

    def forward(
        self,
        embeds_BTD: Tensor,
        states_BTD: Tensor,
        rotation: tuple[Tensor, Tensor],
        past: tuple[KeysAndValues, ...],
        mask: Tensor,
    ) -> tuple[Tensor, KeysAndValues]:
        """States (B, T, D), and the entries' keys and values, which the mask's last columns are those of."""
        x_BTX = torch.cat([self.input_layernorm(embeds_BTD), self.hidden_norm(states_BTD)], dim=-1)
        parts = (self.self_attn[f"{name}_proj"](x_BTX) for name in "qkv")
        queries, keys, values = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        queries, keys = apply_rotary_pos_emb(queries, keys, *rotation)
        own = keys, values.to(keys.dtype)
        all_keys, all_values = (torch.cat(each, dim=2) for each in zip(*past, own, strict=True))
        read = nn.functional.scaled_dot_product_attention(
            queries, all_keys, all_values, attn_mask=mask, enable_gqa=True
        )
        states_BTD = states_BTD + self.self_attn["o_proj"](read.transpose(1, 2).flatten(2))
        out_BTD: Tensor = states_BTD + self.mlp(self.post_attention_layernorm(states_BTD))
        return out_BTD, own


class Eagle3Head(ReducibleHead):
    """The projection of the hidden states, the layer, and a norm and a head of its own.

    Before training they are the target's last layers, norm and head, where these have such weights.
    """

    lm_head: nn.Linear

    def __init__(self, target: Any, layer_ids: list[int] | None, num_layers: int = 1) -> None:
        super().__init__()
        self.config, self.layer_ids = config_of(target, num_layers), layers_read(target, layer_ids)
        size, eps = self.config.hidden_size, self.config.rms_norm_eps
        self.fc = nn.Linear(len(self.layer_ids) * size, size, bias=False)
        self.layers = nn.ModuleList([Eagle3Layer(self.config)])
        self.layers += [LlamaDecoderLayer(self.config, number) for number in range(1, num_layers)]
        self.norm = LlamaRMSNorm(size, eps)
        theirs = plain_head(target.get_output_embeddings())
        self.lm_head = nn.Linear(size, theirs.out_features, bias=False)
        self.rotary = LlamaRotaryEmbedding(self.config)
        with torch.no_grad():
            self.lm_head.weight.copy_(theirs.weight)
        begin_as(target, self.fc, self.layers, self.norm)

    def unroll(self, embeds_BTD: Tensor, hidden_BTH: Tensor, num_steps: int, first: int = 0) -> Iterator[Tensor]:
        """The states (B, T - first, D) of every step: at step i, the last i inputs are the head's own outputs.

        Entry t has position t, and reads the embedding of token t + 1 and the output of the step before at entry t - 1.
        Later steps begin at entry ``first``: the first i states of step i follow from no true entry.
        """
        features_BTD = self.fc(hidden_BTH)
        fed_BTD, past = features_BTD, tuple[KeysAndValues, ...]()
        count, device = embeds_BTD.shape[1], embeds_BTD.device
        cos_1TD, sin_1TD = self.rotary(features_BTD, torch.arange(count, device=device)[None])
        for step in range(num_steps):
            begin = first if step else 0
            rotation, mask = (cos_1TD[:, begin:], sin_1TD[:, begin:]), unrolled_mask(count, step, first, device)
            states_BTD, own = recomputed(self.layers[0], embeds_BTD[:, begin:], fed_BTD, rotation, past, mask)
            past, states_BTD = (*past, own), states_BTD[:, first - begin :]
            yield states_BTD
            fed_BTD = torch.cat([features_BTD[:, first : first + 1].to(states_BTD.dtype), states_BTD[:, :-1]], dim=1)

    def logits(self, states_BTD: Tensor) -> Tensor:
        """(B, T, V)."""
        logits: Tensor = self.lm_head(self.norm(states_BTD))
        return logits


def eagle3_loss(
    module: Eagle3Head, target: Any, batch: Batch, cfg: HeadsConfig, losses: LossConfig, seed: int
) -> LossSum:
    """At every unrolled step, entry t learns the distribution of token t + 2."""
    start = max(0, batch.first_counted - 2)
    hidden, teacher_BTV = read_target(target, batch, start)
    with torch.no_grad():
        embeds_BTD = target.get_input_embeddings()(batch.ids_BT[:, 1:])
    hidden_BTH = torch.cat([hidden[number] for number in module.layer_ids], dim=-1)[:, :-1]
    total = torch.zeros((), device=batch.ids_BT.device)
    begin = max(0, start - cfg.num_heads + 1)  # what the last step at the first counted token follows from
    for step, states_BTD in enumerate(module.unroll(embeds_BTD, hidden_BTH, cfg.num_heads, begin)):
        first = max(start, step)  # earlier entries have no true entry to start from
        student_BTV = module.logits(states_BTD[:, first - begin : -1]).float()
        truth_BT = batch.ids_BT[:, 2 + first :]
        teacher_BSV, counted_BT = teacher_BTV[:, 1 + first - start : -1], batch.counted_BT[:, 2 + first :]
        values, counted_BT = module.tokens.losses(losses, student_BTV, teacher_BSV, truth_BT, counted_BT)
        total = total + cfg.decay**step * masked_sum(values, counted_BT)
    return LossSum(total, batch.counted_BT.sum())


def save_eagle3(folder: Path, module: Eagle3Head, target: CausalLM, cfg: HeadsConfig) -> None:
    """Write the head in the layout of `speculators`, which ``drafter=eagle3`` loads."""
    own = {"eagle_aux_hidden_state_layer_ids": module.layer_ids, "norm_before_residual": False}
    save_published(folder, "eagle3", module, target, own, cfg.num_heads)
