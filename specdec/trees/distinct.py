"""Different tokens of one distribution: the most probable ones, or an ordered sample without replacement.

Shape letters: J tokens of each distribution, V vocabulary; any dimensions before them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.core.sampling import argmax


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


def draw_distinct(probs: Tensor, best: Tensor, uniforms: Tensor) -> Sample:
    """Draw J different tokens of each distribution one after the other, each from what is left (Plackett-Luce).

    In law these are the J largest of log q + Gumbel noise, in descending order (Gumbel-top-k), for one random number
    per draw instead of one per token. The cumulative sum is computed once; a later draw skips the intervals of the
    tokens drawn before. The J most probable tokens come last in it, in ascending order: a sum in which 1 - 1e-14 came
    first would have no digits left for the others.

    Args:
        probs: (..., V) float64. best: (..., J) ids of the most probable tokens, in order. uniforms: (..., J).
    """
    top = best.flip(-1)
    top_probs = probs.gather(-1, top)
    rest = probs.scatter(-1, top, 0.0).cumsum(-1)
    axis = _Axis(rest, top, rest[..., -1:] + top_probs.cumsum(-1))
    starts, widths, tokens, real, masses = (list[Tensor]() for _ in range(5))
    for j in range(uniforms.shape[-1]):
        left = _left(rest[..., -1], top, top_probs, tokens, widths)
        level = uniforms[..., j] * left
        token, start, width = axis.at(level + _skipped(level, starts, widths))
        is_new = torch.stack([token != other for other in tokens]).all(0) if tokens else True
        real.append((left > 0) & (width > 0) & is_new & (real[-1] if real else True))
        masses.append(left)
        for found, value in ((tokens, token), (starts, start), (widths, width)):
            found.append(value)
    return Sample(*(torch.stack(part, dim=-1) for part in (tokens, real, masses)))


def _left(rest: Tensor, top: Tensor, top_probs: Tensor, tokens: list[Tensor], widths: list[Tensor]) -> Tensor:
    """(...): the probability of all tokens that were not drawn, added up without those that were."""
    if not tokens:
        return rest + top_probs.sum(-1)
    is_drawn = (top[..., None] == torch.stack(tokens, dim=-1)[..., None, :]).any(-2)  # (..., draws)
    stays = (top[..., None] != torch.stack(tokens, dim=-1)[..., None, :]).all(-1)  # (..., J)
    gone = torch.where(is_drawn, 0.0, torch.stack(widths, dim=-1)).sum(-1)
    return (rest - gone).clamp(min=0) + (top_probs * stays).sum(-1)


def _skipped(level: Tensor, starts: list[Tensor], widths: list[Tensor]) -> Tensor | float:
    """The widths of the drawn intervals that lie below a level of the axis without them."""
    if not starts:
        return 0.0
    start, width = torch.stack(starts, dim=-1), torch.stack(widths, dim=-1)
    before = start[..., None, :] < start[..., None]  # (..., draws, draws)
    moved = start - (before * width[..., None, :]).sum(-1)
    return (width * (level[..., None] >= moved)).sum(-1)


@dataclass(frozen=True, slots=True)
class _Axis:
    """The intervals of all tokens: first the rest, then the most probable ones."""

    rest: Tensor  # (..., V) cumulative
    top: Tensor  # (..., J) ids
    above: Tensor  # (..., J) cumulative

    def at(self, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The token whose interval holds the level, the interval's start and its width; width 0 past the end."""
        last = self.rest.shape[-1] - 1
        place = torch.searchsorted(self.rest, level[..., None], right=True)
        inside = place <= last
        end = self.rest.gather(-1, place.clamp(max=last))
        start = torch.where(place > 0, self.rest.gather(-1, (place - 1).clamp(0, last)), 0.0)
        upper = (self.above <= level[..., None]).sum(-1, keepdim=True)
        high = upper.clamp(max=self.top.shape[-1] - 1)
        end_above = self.above.gather(-1, high)
        edges = torch.cat([self.rest[..., -1:], self.above[..., :-1]], dim=-1)
        start_above = edges.gather(-1, high)
        token = torch.where(inside, place.clamp(max=last), self.top.gather(-1, high))
        width_above = torch.where(upper == high, end_above - start_above, 0.0)
        return (
            token[..., 0],
            torch.where(inside, start, start_above)[..., 0],
            torch.where(inside, end - start, width_above)[..., 0],
        )
