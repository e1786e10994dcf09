"""Blocks of slots in training: where they begin, what their slots predict, and what they see.

Every row has A blocks, each after an anchor: a token of the text that stands for the last token of a round. A block's K
slots predict the K tokens after it. All blocks of a row are computed at once, and none sees another.
Source: arXiv 2602.06036 (DFlash), which draws anchors anew for every batch, as here.
Shape letters: B rows, T tokens, A anchors, K predicted tokens, S slots of a block, C context columns, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from specdec.core.transfer import to_device
from specdec.training.blocks import Batch
from specdec.training.teacher import read_target


class Anchors(NamedTuple):
    """The anchors of a batch, and what is predicted after them."""

    places_BA: Tensor
    columns_BAK: Tensor  # of the predicted tokens; past a row's end the last column, which does not count
    counted_BAK: Tensor  # bool

    @classmethod
    def drawn(cls, batch: Batch, count: int, num_predicted: int, seed: int, first: int = 0) -> Anchors:
        """``count`` different anchors per row, first those whose next token counts.

        Args:
            first: the first column that may be an anchor.
        """
        num_rows, width = batch.ids_BT.shape
        num_columns = width - 1 - first
        generator = torch.Generator().manual_seed(seed)
        chances_BT = to_device(torch.rand(num_rows, num_columns, generator=generator), batch.ids_BT.device)
        chances_BT = torch.where(batch.counted_BT[:, first + 1 :], chances_BT, chances_BT - 2)
        places_BA = first + chances_BT.topk(min(count, num_columns), dim=1).indices
        columns_BAK = places_BA[..., None] + 1 + torch.arange(num_predicted, device=places_BA.device)
        inside_BAK, columns_BAK = columns_BAK < width, columns_BAK.clamp(max=width - 1)
        return cls(places_BA, columns_BAK, at(batch.counted_BT, columns_BAK) & inside_BAK)


def at(x_BTX: Tensor, columns_BAK: Tensor) -> Tensor:
    """(B, A, K, X): the entries of every row in its columns."""
    rows_B11 = torch.arange(len(x_BTX), device=x_BTX.device)[:, None, None]
    return x_BTX[rows_B11, columns_BAK]


def slots_mask(ends_BA: Tensor, num_context: int, num_slots: int, *, causal: bool) -> Tensor:
    """(B, A S, C + A S) bool: a slot sees the context before its block's end column, and its own block.

    Args:
        ends_BA: the first context column that a block does not see.
        causal: whether it sees no later slots of its block.
    """
    num_rows, num_anchors = ends_BA.shape
    context_BSC = torch.arange(num_context, device=ends_BA.device) < ends_BA.repeat_interleave(num_slots, 1)[..., None]
    block_SS = torch.ones(num_slots, num_slots, dtype=torch.bool, device=ends_BA.device)
    own_SS = torch.block_diag(*[block_SS.tril() if causal else block_SS] * num_anchors).bool()
    return torch.cat([context_BSC, own_SS.expand(num_rows, -1, -1)], dim=-1)


@torch.no_grad()
def teacher(target: Any, batch: Batch, anchors: Anchors, layer_ids: list[int]) -> tuple[Tensor, Tensor]:
    """The target's hidden states of several layers side by side (B, T, H), and its logits (B, A, K, V) for the tokens
    that are predicted."""
    start = max(0, batch.first_counted - 1)  # the first column that predicts a counted token
    states, logits_BTV = read_target(target, batch, start)
    hidden_BTH = torch.cat([states[number] for number in layer_ids], dim=-1)
    return hidden_BTH, at(logits_BTV, (anchors.columns_BAK - 1 - start).clamp(min=0))
