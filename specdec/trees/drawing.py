"""Drawing tokens without a pass over the vocabulary per draw: by sums of blocks, then within one block.

Shape letters: M distributions, V vocabulary, N blocks, X tokens of a block, D draws of which each names its
distribution, J draws of one distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.core.sampling import argmax

BLOCK = 256


def most_probable(scores: Tensor, count: int) -> Tensor:
    """(..., J) ids of the highest scores, highest first, and of equal ones the first.

    Repeated argmax: topk leaves open which of equal scores it returns, and on a GPU that depends on the batch.
    """
    count = min(count, scores.shape[-1])
    found = [argmax(scores)]
    if count > 1:
        scores = scores.clone()
    while len(found) < count:
        scores.scatter_(-1, found[-1][..., None], -torch.inf)
        found.append(argmax(scores))
    return torch.stack(found, dim=-1)


@dataclass(frozen=True, slots=True)
class Sample:
    """Ordered samples without replacement."""

    tokens: Tensor  # (..., J)
    real: Tensor  # (..., J) bool: False from where no token of positive probability is left
    masses: Tensor  # (..., J): the probability that was left before each draw


def draw_distinct(probs: Tensor, uniforms: Tensor) -> Sample:
    """Draw J different tokens of each distribution one after the other, each from what is left (Plackett-Luce).

    In law these are the J largest of log q + Gumbel noise, in descending order (Gumbel-top-k), for one random number
    per draw instead of one per token. After a draw the sum of its block is taken again without the token: subtracting
    it would leave no digits where it had nearly all.

    Args:
        probs: (..., V) float64. uniforms: (..., J).
    """
    lead, count = probs.shape[:-1], uniforms.shape[-1]
    probs_MV, numbers_MJ = probs.flatten(0, -2).contiguous(), uniforms.reshape(-1, count)
    sums_MN, every_M = block_sums(probs_MV), torch.arange(len(probs_MV), device=probs.device)
    tokens_MJ = torch.full_like(numbers_MJ, -1, dtype=torch.long)
    masses_MJ = torch.empty_like(numbers_MJ)
    for j in range(count):
        block_M1, within_M1, masses_MJ[:, j] = _pick(sums_MN, numbers_MJ[:, j])
        tokens_MX, values_MX = _block(probs_MV, every_M, block_M1)
        drawn_MX = (tokens_MX[..., None] == tokens_MJ[:, None, :j]).any(-1)
        values_MX = values_MX.masked_fill(drawn_MX, 0.0)
        place_M1 = _place(values_MX, within_M1)
        tokens_MJ[:, j] = tokens_MX.gather(1, place_M1)[:, 0]
        sums_MN.scatter_(1, block_M1, values_MX.scatter(1, place_M1, 0.0).sum(-1, keepdim=True))
    return Sample(*(part.reshape(*lead, count) for part in (tokens_MJ, masses_MJ > 0, masses_MJ)))


def draw_each(probs_MV: Tensor, at_D: Tensor, uniforms_D: Tensor) -> Tensor:
    """(D): a token of each named distribution, independently."""
    block_D1, within_D1, _ = _pick(block_sums(probs_MV)[at_D], uniforms_D)
    tokens_DX, values_DX = _block(probs_MV, at_D, block_D1)
    return tokens_DX.gather(1, _place(values_DX, within_D1))[:, 0]


def block_sums(probs_MV: Tensor) -> Tensor:
    """(M, N): the probability of every block of tokens; the last block may be smaller."""
    whole = probs_MV.shape[1] // BLOCK * BLOCK
    sums_MN: Tensor = probs_MV[:, :whole].unflatten(1, (whole // BLOCK, BLOCK)).sum(-1)
    if whole < probs_MV.shape[1]:
        sums_MN = torch.cat([sums_MN, probs_MV[:, whole:].sum(-1, keepdim=True)], dim=1)
    return sums_MN


def _pick(weights_DN: Tensor, uniforms_D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The interval (D, 1) that a random number falls into (one of weight 0 only if all are), how far, and all (D)."""
    ends_DN = weights_DN.cumsum(-1)
    level_D1 = _below(uniforms_D[:, None] * ends_DN[:, -1:], ends_DN[:, -1:])
    place_D1 = torch.searchsorted(ends_DN, level_D1, right=True).clamp(max=ends_DN.shape[1] - 1)
    start_D1 = torch.where(place_D1 > 0, ends_DN.gather(1, (place_D1 - 1).clamp(min=0)), 0.0)
    return place_D1, level_D1 - start_D1, ends_DN[:, -1]


def _block(probs_MV: Tensor, at_D: Tensor, block_D1: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens (D, X) of a block, and their probabilities; the last block begins with tokens of another, as 0."""
    vocab_size = probs_MV.shape[1]
    width = min(BLOCK, vocab_size)
    first_D1 = (block_D1 * BLOCK).clamp(max=vocab_size - width)
    tokens_DX = first_D1 + torch.arange(width, device=block_D1.device)
    runs = probs_MV.view(-1).unfold(0, width, 1)  # a view: rows of it are copied faster than single elements
    values_DX = runs[at_D * vocab_size + first_D1[:, 0]]
    return tokens_DX, values_DX.masked_fill_(tokens_DX < block_D1 * BLOCK, 0.0)


def _place(values_DX: Tensor, level_D1: Tensor) -> Tensor:
    """(D, 1): the interval that holds a level; the block's own sum may be rounded otherwise than its total was."""
    ends_DX = values_DX.cumsum(-1)
    level_D1 = _below(level_D1, ends_DX[:, -1:])
    return torch.searchsorted(ends_DX, level_D1, right=True).clamp(max=values_DX.shape[1] - 1)


def _below(level: Tensor, total: Tensor) -> Tensor:
    """The level, or the largest number below the total if it is not below it."""
    return torch.minimum(level, torch.nextafter(total, torch.zeros_like(total)))
