"""Training of LongSpec on short rows for long contexts: anchor-offset positions, and noise in the target's keys.

Positions: the first few tokens of a row keep theirs (attention sinks), all later ones move by one random offset, so
that positions far beyond the rows' length are learned. The frozen target runs with the same positions.
Noise: while a draft grows, the target's keys of its newest tokens are missing. A batch draws how many, j: token t then
sees the target's keys up to token t - j, and the first j tokens, which see none, do not count.
Source: Yang et al. 2025, arXiv 2502.17421 (LongSpec, "Anchor-Offset Indices" and "Flash Noisy Training").
Shape letters: B rows, T tokens, S columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from specdec.core.transfer import to_device
from specdec.heads.last_layer import LastLayer
from specdec.heads.longspec_layer import KeysAndValues, LongSpecLayer
from specdec.models.architecture import context_length
from specdec.models.cache_argument import cache_argument, returned_cache
from specdec.training.blocks import Batch
from specdec.training.config import HeadsConfig, LossConfig
from specdec.training.losses import LossSum, masked_sum, weighted_losses

MAX_ANCHORS = 4
"""Tokens at a row's beginning that keep their positions, at most."""


class LongSpecHead(LongSpecLayer):
    """The layer for a target; logits and embeddings are the target's."""

    def __init__(self, target: Any, cfg: HeadsConfig) -> None:
        super().__init__(target, LastLayer(target, "heads.kind=longspec"), cfg.window)

    def states(
        self, target: Any, ids_BT: Tensor, positions_BT: Tensor, read: KeysAndValues, num_missing: int
    ) -> Tensor:
        """(B, T, D), where token t sees the target's keys up to token t - ``num_missing``; those that see none are not
        defined."""
        columns_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        ago_TS = columns_T[:, None] - columns_T
        # By positions, as in drafting: anchors are out of sight once they are a window away.
        near_BTS = positions_BT[:, :, None] - positions_BT[:, None] < self.window
        with torch.no_grad():
            embeds_BTD = target.get_input_embeddings()(ids_BT)
            rotation = rotary_of(target, embeds_BTD, positions_BT)
        return self(embeds_BTD, rotation, near_BTS & (ago_TS >= 0), (ago_TS >= num_missing)[None], read)  # type: ignore[no-any-return]


def rotary_of(target: Any, x_BTD: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The target's own cosines and sines (B, T, E)."""
    cos_BTE, sin_BTE = getattr(target, target.base_model_prefix).rotary_emb(x_BTD, positions_BT)
    return cos_BTE, sin_BTE


def longspec_loss(
    module: LongSpecHead, target: Any, batch: Batch, cfg: HeadsConfig, losses: LossConfig, seed: int
) -> LossSum:
    """Token t learns the distribution of token t + 1."""
    generator = torch.Generator().manual_seed(seed)
    num_missing = 1 + int(torch.randint(cfg.num_heads, (), generator=generator))
    num_rows, width = batch.ids_BT.shape
    context = context_length(target.config.get_text_config())
    farthest = min(context - width, cfg.max_offset if cfg.max_offset is not None else context)
    positions_BT = to_device(anchored(num_rows, width, farthest, generator), batch.ids_BT.device)
    start = max(batch.first_counted - 1, num_missing)
    read, teacher_BTV = read_target(target, batch.ids_BT, positions_BT, start)
    states_BTD = module.states(target, batch.ids_BT, positions_BT, read, num_missing)
    student_BTV = target.get_output_embeddings()(states_BTD[:, start:-1]).float()
    counted_BT = batch.counted_BT[:, start + 1 :]
    values_BT = weighted_losses(losses, student_BTV, teacher_BTV[:, :-1], batch.ids_BT[:, start + 1 :])
    return LossSum(masked_sum(values_BT, counted_BT), counted_BT.sum())


def anchored(num_rows: int, width: int, farthest: int, generator: torch.Generator) -> Tensor:
    """(B, T) positions: of each row 0 to 4 anchors, and one offset of 0 to ``farthest`` for the tokens after them."""
    anchors_B1 = torch.randint(MAX_ANCHORS + 1, (num_rows, 1), generator=generator)
    offsets_B1 = torch.randint(max(farthest, 0) + 1, (num_rows, 1), generator=generator)
    columns_T = torch.arange(width)
    return columns_T + torch.where(columns_T < anchors_B1, 0, offsets_B1)


@torch.no_grad()
def read_target(target: Any, ids_BT: Tensor, positions_BT: Tensor, start: int) -> tuple[KeysAndValues, Tensor]:
    """Keys and values (B, K, T, E) of the target's last layer, and its logits (B, T - start, V) from a column on.

    With a cache: without one, `transformers` takes a jump of the positions for the beginning of another text.
    """
    output = target(
        input_ids=ids_BT,
        position_ids=positions_BT,
        logits_to_keep=ids_BT.shape[1] - start,
        use_cache=True,
        **cache_argument(target, DynamicCache()),
    )
    last = returned_cache(output).layers[-1]
    return (last.keys, last.values), output.logits.float()
