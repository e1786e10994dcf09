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
    per draw instead of one per token.

    Args:
        probs: (..., V) float64. uniforms: (..., J).
    """
    lead, count = probs.shape[:-1], uniforms.shape[-1]
    urns, numbers_MJ = Urns(probs), uniforms.reshape(-1, count)
    every_M = torch.arange(len(numbers_MJ), device=probs.device)
    tokens_J, masses_J = zip(*(urns.draw(every_M, numbers_M) for numbers_M in numbers_MJ.unbind(1)), strict=True)
    urns.restore()
    tokens, masses = (torch.stack(parts, dim=1).reshape(*lead, count) for parts in (tokens_J, masses_J))
    return Sample(tokens, masses > 0, masses)


class Urns:
    """Distributions from which tokens are drawn one after the other, without replacement, until ``restore``.

    A token that was drawn has probability 0 in ``probs`` itself: marking it elsewhere would be a pass over all
    earlier draws at each. The sum of its block is taken again without it: subtracting would leave no digits where it
    had nearly all.

    Args:
        probs: (..., V) float64, M distributions.
    """

    def __init__(self, probs: Tensor) -> None:
        self._flat, self._starts_M = _flat(probs)
        self._vocab_size = probs.shape[-1]
        self._sums_MN = block_sums(probs).flatten(0, -2)
        self._drawn: list[tuple[Tensor, Tensor]] = []  # places, probabilities

    def draw(self, at_D: Tensor, uniforms_D: Tensor) -> tuple[Tensor, Tensor]:
        """One token (D) of each named distribution, all different ones, and the probability (D) left before the draw.

        Where nothing is left the token may be any.
        """
        block_D1, within_D1, left_D = _pick(self._sums_MN[at_D], uniforms_D)
        starts_D = self._starts_M[at_D]
        tokens_DX, values_DX = _block(self._flat, starts_D, block_D1, self._vocab_size)
        place_D1 = _place(values_DX, within_D1)
        tokens_D = tokens_DX.gather(1, place_D1)[:, 0]
        drawn_D = starts_D + tokens_D
        self._drawn.append((drawn_D, values_DX.gather(1, place_D1)[:, 0]))
        self._flat[drawn_D] = 0.0
        self._sums_MN[at_D, block_D1[:, 0]] = values_DX.scatter_(1, place_D1, 0.0).sum(-1)
        return tokens_D, left_D

    def restore(self) -> None:
        """Give the tokens drawn their probabilities back."""
        for drawn_D, values_D in reversed(self._drawn):
            self._flat[drawn_D] = values_D
        self._drawn.clear()


def draw_each(probs: Tensor, at_D: Tensor, uniforms_D: Tensor) -> Tensor:
    """(D): a token of each named one of the M distributions (..., V), independently."""
    (flat, starts_M), sums_MN = _flat(probs), block_sums(probs).flatten(0, -2)
    block_D1, within_D1, _ = _pick(sums_MN[at_D], uniforms_D)
    tokens_DX, values_DX = _block(flat, starts_M[at_D], block_D1, probs.shape[-1])
    return tokens_DX.gather(1, _place(values_DX, within_D1))[:, 0]


def block_sums(probs: Tensor) -> Tensor:
    """(..., N) of (..., V): the probability of every block of tokens; the last block may be smaller."""
    whole = probs.shape[-1] // BLOCK * BLOCK
    sums: Tensor = probs[..., :whole].unflatten(-1, (whole // BLOCK, BLOCK)).sum(-1)
    if whole < probs.shape[-1]:
        sums = torch.cat([sums, probs[..., whole:].sum(-1, keepdim=True)], dim=-1)
    return sums


def _flat(probs: Tensor) -> tuple[Tensor, Tensor]:
    """The memory of distributions (..., V) as one vector, and where each of them (M) begins in it."""
    if 0 in probs.stride() or probs.stride(-1) != 1:  # expanded: what is marked in one would be in others too
        probs = probs.contiguous()
    sizes, strides = probs.shape, probs.stride()
    starts = torch.zeros((), dtype=torch.long, device=probs.device)
    for size, stride in zip(sizes[:-1], strides[:-1], strict=True):
        starts = starts[..., None] + torch.arange(size, device=probs.device) * stride
    length = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    return probs.as_strided((length,), (1,)), starts.flatten()


def _pick(weights_DN: Tensor, uniforms_D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The interval (D, 1) that a random number falls into (one of weight 0 only if all are), how far, and all (D)."""
    ends_DN = weights_DN.cumsum(-1)
    level_D1 = _below(uniforms_D[:, None] * ends_DN[:, -1:], ends_DN[:, -1:])
    place_D1 = torch.searchsorted(ends_DN, level_D1, right=True).clamp(max=ends_DN.shape[1] - 1)
    start_D1 = torch.where(place_D1 > 0, ends_DN.gather(1, (place_D1 - 1).clamp(min=0)), 0.0)
    return place_D1, level_D1 - start_D1, ends_DN[:, -1]


def _block(flat: Tensor, starts_D: Tensor, block_D1: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """The tokens (D, X) of a block, and their probabilities; the last block begins with tokens of another, as 0."""
    width = min(BLOCK, vocab_size)
    first_D1 = (block_D1 * BLOCK).clamp(max=vocab_size - width)
    tokens_DX = first_D1 + torch.arange(width, device=block_D1.device)
    runs = flat.unfold(0, width, 1)  # a view: rows of it are copied faster than single elements
    values_DX = runs[starts_D + first_D1[:, 0]]
    return tokens_DX, values_DX.masked_fill_(tokens_DX < block_D1 * BLOCK, 0.0)


def _place(values_DX: Tensor, level_D1: Tensor) -> Tensor:
    """(D, 1): the interval that holds a level; the block's own sum may be rounded otherwise than its total was."""
    ends_DX = values_DX.cumsum(-1)
    level_D1 = _below(level_D1, ends_DX[:, -1:])
    return torch.searchsorted(ends_DX, level_D1, right=True).clamp(max=values_DX.shape[1] - 1)


def _below(level: Tensor, total: Tensor) -> Tensor:
    """The level, or the largest number below the total if it is not below it."""
    return torch.minimum(level, torch.nextafter(total, torch.zeros_like(total)))
