"""Training of DFlash: all slots of a block in one forward, over keys and values made of the target's hidden states.

A block is an anchor and mask tokens; its slots see the context before the anchor, and each other. With one slot per
token but the anchor's, slot k learns the distribution of the k-th token after the anchor.
Source: arXiv 2602.06036 (DFlash). The names of the weights are those of `speculators`.
Shape letters: B rows, T tokens, A anchors, K predicted tokens, S = A x slots of a block, D hidden size, H hidden states
that are read, C context and slots, E head size, V vocabulary, N tokens that can be drafted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding, rotate_half

from specdec.models.causal_lm import CausalLM
from specdec.training.anchors import Anchors, at, slots_mask, teacher
from specdec.training.blocks import Batch
from specdec.training.config import HeadsConfig, LossConfig
from specdec.training.draft_tokens import ReducibleHead
from specdec.training.losses import LossSum, masked_sum
from specdec.training.published import begin_as, config_of, layers_read, mask_token, save_published
from specdec.training.recompute import recomputed

Rotation = tuple[Tensor, Tensor]


class BlockLayer(nn.Module):
    """A decoder layer of slots whose attention also reads context vectors, by its own products of keys and values."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        size, heads, keys = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        assert heads is not None
        assert keys is not None
        self.head_dim, eps = int(config.head_dim or size // heads), config.rms_norm_eps
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(size, heads * self.head_dim, bias=False),
                "k_proj": nn.Linear(size, keys * self.head_dim, bias=False),
                "v_proj": nn.Linear(size, keys * self.head_dim, bias=False),
                "o_proj": nn.Linear(heads * self.head_dim, size, bias=False),
                "q_norm": LlamaRMSNorm(self.head_dim, eps),
                "k_norm": LlamaRMSNorm(self.head_dim, eps),
            }
        )
        self.mlp = LlamaMLP(config)
        self.input_layernorm, self.post_attention_layernorm = LlamaRMSNorm(size, eps), LlamaRMSNorm(size, eps)

    def forward(
        self, x_BSD: Tensor, context_BTD: Tensor, of_slots: Rotation, of_context: Rotation, mask_B1SC: Tensor
    ) -> Tensor:
        """(B, S, D). The context has no norm here, as every layer reads the same."""
        normed_BSD = self.input_layernorm(x_BSD)
        queries = self._heads("q", normed_BSD, of_slots)
        keys = [self._heads("k", context_BTD, of_context), self._heads("k", normed_BSD, of_slots)]
        values = [self._heads("v", context_BTD, None), self._heads("v", normed_BSD, None)]
        read = nn.functional.scaled_dot_product_attention(
            queries, torch.cat(keys, 2), torch.cat(values, 2).to(queries.dtype), attn_mask=mask_B1SC, enable_gqa=True
        )
        x_BSD = x_BSD + self.self_attn["o_proj"](read.transpose(1, 2).flatten(2))
        out_BSD: Tensor = x_BSD + self.mlp(self.post_attention_layernorm(x_BSD))
        return out_BSD

    def _heads(self, part: str, x_BTD: Tensor, rotation: Rotation | None) -> Tensor:
        x_BHTE: Tensor = self.self_attn[f"{part}_proj"](x_BTD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        if rotation is None:
            return x_BHTE
        normed_BHTE = self.self_attn[f"{part}_norm"](x_BHTE)
        cos_B1TE, sin_B1TE = (angles[:, None] for angles in rotation)
        rotated_BHTE: Tensor = normed_BHTE * cos_B1TE + rotate_half(normed_BHTE) * sin_B1TE
        return rotated_BHTE


class BlockHead(ReducibleHead):
    """The layers; embeddings are the target's, and so are logits unless the head drafts some tokens only.

    Args:
        from_anchor: whether the anchor's slot predicts the first token; otherwise the first mask's does.
    """

    def __init__(self, target: Any, cfg: HeadsConfig, *, from_anchor: bool) -> None:
        super().__init__()
        self.config, self.layer_ids = config_of(target, cfg.num_layers), layers_read(target, cfg.layer_ids)
        size, eps = self.config.hidden_size, self.config.rms_norm_eps
        self.first, self.block_size = (0, cfg.num_heads) if from_anchor else (1, cfg.num_heads + 1)
        self.mask_token_id = mask_token(target)
        self.fc = nn.Linear(len(self.layer_ids) * size, size, bias=False)
        self.hidden_norm, self.norm = LlamaRMSNorm(size, eps), LlamaRMSNorm(size, eps)
        self.layers = nn.ModuleList([BlockLayer(self.config) for _ in range(cfg.num_layers)])
        self.rotary = LlamaRotaryEmbedding(self.config)
        self.lm_head = None
        begin_as(target, self.fc, self.layers, self.norm)

    def forward(self, target: Any, ids_BT: Tensor, hidden_BTH: Tensor, places_BA: Tensor) -> Tensor:
        """The states (B, A, K, D) of the slots that predict."""
        num_rows, width = ids_BT.shape
        ids_BAS = ids_BT.new_full((*places_BA.shape, self.block_size), self.mask_token_id)
        ids_BAS[..., 0] = ids_BT.gather(1, places_BA)
        with torch.no_grad():
            x_BSD = target.get_input_embeddings()(ids_BAS.flatten(1))
        context_BTD = self.hidden_norm(self.fc(hidden_BTH))
        positions_BAS = places_BA[..., None] + torch.arange(self.block_size, device=ids_BT.device)
        of_slots = self.rotary(context_BTD, positions_BAS.flatten(1))
        of_context = self.rotary(context_BTD, torch.arange(width, device=ids_BT.device).expand(num_rows, -1))
        mask_B1SC = slots_mask(places_BA, width, self.block_size, causal=False)[:, None]
        for layer in self.layers:
            x_BSD = recomputed(layer, x_BSD, context_BTD, of_slots, of_context, mask_B1SC)
        states_BASD: Tensor = self.norm(x_BSD).unflatten(1, positions_BAS.shape[1:])
        return states_BASD[:, :, self.first :]

    def logits(self, target: Any, states_BAKD: Tensor) -> Tensor:
        """(B, A, K, N)."""
        logits: Tensor = (self.lm_head or target.get_output_embeddings())(states_BAKD)
        return logits


def dflash_loss(
    module: BlockHead, target: Any, batch: Batch, cfg: HeadsConfig, losses: LossConfig, seed: int
) -> LossSum:
    """At every anchor, slot k learns the distribution of the k-th token after it."""
    anchors = Anchors.drawn(batch, cfg.num_anchors, cfg.num_heads, seed)
    hidden_BTH, teacher_BAKV = teacher(target, batch, anchors, module.layer_ids)
    states_BAKD = module(target, batch.ids_BT, hidden_BTH, anchors.places_BA)
    return slots_loss(module, module.logits(target, states_BAKD), teacher_BAKV, batch, anchors, cfg, losses)


def slots_loss(
    module: ReducibleHead,
    logits_BAKN: Tensor,
    teacher_BAKV: Tensor,
    batch: Batch,
    anchors: Anchors,
    cfg: HeadsConfig,
    losses: LossConfig,
    further_BAK: Tensor | None = None,
) -> LossSum:
    """The losses of all slots that count, slot k's times decay ** k; ``further_BAK`` is added to those of its slots."""
    truth_BAK = at(batch.ids_BT, anchors.columns_BAK)
    values_BAK, counted_BAK = module.tokens.losses(
        losses, logits_BAKN.float(), teacher_BAKV, truth_BAK, anchors.counted_BAK
    )
    decays_K = cfg.decay ** torch.arange(truth_BAK.shape[-1], device=truth_BAK.device)
    total = masked_sum(decays_K * values_BAK, counted_BAK)
    if further_BAK is not None:
        total = total + masked_sum(decays_K * further_BAK, anchors.counted_BAK)
    return LossSum(total, anchors.counted_BAK.any(-1).sum())


def save_dflash(folder: Path, module: BlockHead, target: CausalLM, cfg: HeadsConfig) -> None:
    """Write the head in the layout of `speculators`, which ``drafter=dflash`` loads."""
    save_block_head(folder, "dflash", module, target, {}, cfg)


def save_block_head(
    folder: Path, kind: str, module: BlockHead, target: CausalLM, own: dict[str, Any], cfg: HeadsConfig
) -> None:
    """Write a head whose layers are those of DFlash."""
    settings = {
        "aux_hidden_state_layer_ids": module.layer_ids,
        "block_size": module.block_size,
        "mask_token_id": module.mask_token_id,
        "sample_from_anchor": module.first == 0,
    }
    save_published(folder, kind, module, target, {**settings, **own}, cfg.num_heads, model_type="qwen3")
