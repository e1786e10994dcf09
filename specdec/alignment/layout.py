"""Position and mask tensors from explicit lengths, shared by all strategies."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specdec.alignment.content import Content
from specdec.core.transfer import to_device

MOST_LISTED = 32  # new tokens of a row whose pairs with nodes are sent to the device as a list


def padded(lists: list[list[int]], device: torch.device, width: int = 0) -> Tensor:
    """Ragged lists as a (B, T) int64 tensor, padded with 0 on the right to the longest, and at least to ``width``."""
    width = max(width, *map(len, lists)) if lists else width
    return to_device([row + [0] * (width - len(row)) for row in lists], device, torch.long)


def consecutive(starts: list[int], lengths: list[int], num_columns: int, device: torch.device) -> Tensor:
    """(B, S) bool: each row's ``length`` columns from its start on."""
    columns_S = torch.arange(num_columns, device=device)
    starts_B1 = to_device(starts, device)[:, None]
    lengths_B1 = to_device(lengths, device)[:, None]
    return (columns_S >= starts_B1) & (columns_S < starts_B1 + lengths_B1)


def real_tokens(counts: list[int], width: int, device: torch.device) -> Tensor | None:
    """(B, T) bool: each row's first ``counts[b]`` tokens; None if no row has fewer than ``width``."""
    if min(counts) == width:
        return None
    return to_device([[t < count for t in range(width)] for count in counts], device)


def causal(num_columns: int, device: torch.device) -> Tensor:
    """(S, S) bool: every column sees itself and those before it."""
    return torch.ones(num_columns, num_columns, dtype=torch.bool, device=device).tril()


def attention_mask(
    *,
    committed_BS: Tensor,
    contents: list[Content],
    node_columns: list[list[int]],
    num_tokens: list[int],
    num_new: int,
) -> Tensor:
    """Which columns each new token sees: its row's committed tokens, its ancestors and itself.

    Args:
        committed_BS: (B, S) bool, the columns of each row's committed tokens.
        contents: of each row, with the new tokens already fed.
        node_columns: column of each node of each row.
        num_tokens: new tokens per row; a query past them also sees one of the last columns (its output is not read,
            but must be finite).
        num_new: columns that the forward adds, T.

    Returns:
        (B, T, S) bool.
    """
    first_new = committed_BS.shape[1] - num_new
    if max(num_tokens, default=0) > MOST_LISTED and all(content.is_chain() for content in contents):
        return committed_BS[:, None] | _chains(committed_BS, node_columns, num_tokens, num_new)
    mask_BTS = committed_BS[:, None].repeat(1, num_new, 1)
    index: list[NDArray[np.int64]] = []
    for b, (content, columns, count) in enumerate(zip(contents, node_columns, num_tokens, strict=True)):
        first = len(content.parents) - count
        queries, nodes = ancestry(content.parents)[first:].nonzero()
        queries = np.concatenate([queries, np.arange(count, num_new)])
        seen = np.concatenate([np.array(columns, dtype=np.int64)[nodes], first_new + np.arange(count, num_new)])
        index.append(np.stack([np.full(len(seen), b), queries, seen]))
    rows_I, queries_I, seen_I = to_device(np.concatenate(index, axis=1), committed_BS.device)
    mask_BTS[rows_I, queries_I, seen_I] = True
    return mask_BTS


def _chains(committed_BS: Tensor, node_columns: list[list[int]], num_tokens: list[int], num_new: int) -> Tensor:
    """(B, T, S) bool: which nodes of its chain each new token sees; a list of pairs would have T^2 / 2 of them."""
    device, hidden = committed_BS.device, np.iinfo(np.int32).max
    numbers_BS = np.full(committed_BS.shape, hidden, dtype=np.int32)  # of the node in each column
    queries_BT = np.full((len(num_tokens), num_new), -1, dtype=np.int32)
    for b, (columns, count) in enumerate(zip(node_columns, num_tokens, strict=True)):
        numbers_BS[b, columns] = np.arange(len(columns))
        queries_BT[b, :count] = np.arange(len(columns) - count, len(columns))
    seen_BTS = to_device(numbers_BS, device)[:, None] <= to_device(queries_BT, device)[..., None]
    padding_BT = to_device(queries_BT < 0, device)
    own_T = torch.arange(num_new, device=device)
    seen_BTS[:, own_T, committed_BS.shape[1] - num_new + own_T] |= padding_BT
    return seen_BTS


def ancestry(parents: list[int]) -> NDArray[np.bool_]:
    """(M, M) bool: which nodes each node may see: itself and its ancestors. Parents come before children."""
    place = np.array(parents, dtype=np.int64)
    above = np.eye(len(parents), dtype=bool)
    nodes, up = np.arange(len(parents)), place
    while (alive := up >= 0).any():
        above[nodes[alive], up[alive]] = True
        up = np.where(alive, place[up], -1)
    return above
