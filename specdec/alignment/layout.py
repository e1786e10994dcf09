"""Position and mask tensors from explicit lengths, shared by the strategies."""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.alignment.content import Content


def padded(lists: list[list[int]], device: torch.device) -> Tensor:
    """Ragged lists as a (B, T) int64 tensor, filled with 0 on the right."""
    width = max(map(len, lists), default=0)
    return torch.tensor([row + [0] * (width - len(row)) for row in lists], dtype=torch.long, device=device)


def attention_mask(
    *,
    starts: list[int],
    contents: list[Content],
    node_columns: list[list[int]],
    num_tokens: list[int],
    width: int,
    num_new: int,
    device: torch.device,
) -> Tensor:
    """Which columns each new token sees: its row's committed tokens, its ancestors and itself.

    Args:
        starts: first column of each row's committed tokens, which are consecutive.
        contents: of each row, with the new tokens already fed.
        node_columns: column of each node of each row.
        num_tokens: new tokens per row; the queries behind them see themselves only (their output is not read, but
            it must be finite).
        width: columns in use before the forward. num_new: columns that it adds.

    Returns:
        (B, T, S) bool, S = width + num_new.
    """
    columns_S = torch.arange(width + num_new, device=device)
    starts_B = torch.tensor(starts, device=device)
    stops_B = torch.tensor(
        [start + content.length for start, content in zip(starts, contents, strict=True)], device=device
    )
    committed_BS = (columns_S >= starts_B[:, None]) & (columns_S < stops_B[:, None])
    mask_BTS = committed_BS[:, None].repeat(1, num_new, 1)
    index: list[tuple[int, int, int]] = []
    for b, content in enumerate(contents):
        first = len(content.parents) - num_tokens[b]
        for t in range(num_new):
            if t < num_tokens[b]:
                index.extend((b, t, node_columns[b][node]) for node in content.ancestors(first + t))
            else:
                index.append((b, t, width + t))
    rows, queries, seen = torch.tensor(index, device=device).unbind(-1)
    mask_BTS[rows, queries, seen] = True
    return mask_BTS
