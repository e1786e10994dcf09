"""Sampling without replacement with a set number of children per level (RSD-C).

Shape letters: B rows, N nodes, J children of a node, S places of a level's full tree.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from specdec.core.siblings import WITHOUT_REPLACEMENT
from specdec.errors import ConfigError
from specdec.trees.base import Children, Tree
from specdec.trees.drawing import draw_distinct, most_probable
from specdec.trees.frontier import Frontier, by_place


class GumbelTree(Tree):
    """Every node of depth d has ``branches[d]`` children: different tokens, in the order of Gumbel-top-k.

    A greedy row's children are its most probable tokens. Source: Jeon et al. 2024, arXiv 2402.14160, RSD-C.
    """

    siblings = WITHOUT_REPLACEMENT

    def __init__(self, *, branches: list[int]) -> None:
        if not branches or min(branches) < 1:
            raise ConfigError(f"tree.branches={list(branches)}: give the children per node of each depth, at least 1")
        self.branches = list(branches)
        self.max_depth = len(branches)

    def num_nodes(self, depth: int) -> int:
        return sum(prod(self.branches[: d + 1]) for d in range(min(depth, len(self.branches))))

    def grow(self, frontier: Frontier) -> Children:
        count = min(self.branches[frontier.depth], frontier.scores_BNV.shape[-1])
        num_nodes = frontier.real_BN.shape[1]
        slots_BN = frontier.state.get("slots")
        if slots_BN is None:
            slots_BN = torch.zeros_like(frontier.real_BN, dtype=torch.long)
        tokens_BNJ, real_BNJ = self._tokens(frontier, count, slots_BN)
        # A child's number in the full tree, in which nothing is missing, is that of its draw.
        children_BNJ = slots_BN[..., None] * self.branches[frontier.depth] + torch.arange(count, device=slots_BN.device)
        return Children(
            tokens_BNJ.flatten(1),
            torch.arange(num_nodes).repeat_interleave(count).expand(len(tokens_BNJ), -1),
            real_BNJ.flatten(1),
            state={"slots": children_BNJ.flatten(1)},
        )

    def _tokens(self, frontier: Frontier, count: int, slots_BN: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, J) tokens, and which of them exist."""
        if not frontier.samples:
            best_BNJ = most_probable(frontier.scores_BNV, count)
            return best_BNJ, torch.ones(best_BNJ.shape, dtype=torch.bool)
        num_slots = prod(self.branches[: frontier.depth])
        numbers_BSJ = frontier.numbers(num_slots * count).unflatten(1, (num_slots, count))
        sample = draw_distinct(frontier.probs(), by_place(numbers_BSJ, slots_BN))
        if not frontier.chooses:
            return sample.tokens, sample.real
        best_BNJ, greedy_B11 = most_probable(frontier.scores_BNV, count), frontier.greedy_B[:, None, None]
        return torch.where(greedy_B11, best_BNJ, sample.tokens), greedy_B11 | sample.real
