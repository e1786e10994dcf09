"""A fixed shape: set places among each node's most probable tokens.

Shape letters: B rows, N nodes, J candidates of a node, C children of a level.
"""

from __future__ import annotations

import torch

from specdec.core.siblings import CHOSEN
from specdec.core.transfer import to_device
from specdec.trees.base import Children, Tree, at_least
from specdec.trees.drawing import most_probable
from specdec.trees.frontier import Frontier
from specdec.trees.shape import ASSUMED, Shape, best_shape, read_shape


class StaticTree(Tree):
    """The same shape in every round: the r-th most probable tokens at set places.

    Source: Cai et al. 2024, arXiv 2401.10774 (Medusa), appendix C, for shapes from measured acceptance.
    """

    siblings = CHOSEN
    shaped = True

    def __init__(self, *, path: str | None, num_nodes: int) -> None:
        at_least("num_nodes", num_nodes)
        self.shape: Shape = read_shape(path) if path else best_shape(ASSUMED, num_nodes)
        self.max_depth = len(self.shape.levels)

    def num_nodes(self, depth: int) -> int:
        return sum(len(level.ranks) for level in self.shape.levels[:depth])

    def widths(self) -> list[int]:
        return [len(self.shape.parents) // share for share in (4, 2) if len(self.shape.parents) >= share]

    def num_fed(self, depth: int) -> int:
        return sum(sum(level.extended) for level in self.shape.levels[: max(depth - 1, 0)])

    def grow(self, frontier: Frontier) -> Children:
        level = self.shape.levels[frontier.depth]
        best_BNJ = most_probable(frontier.scores_BNV, max(level.ranks) + 1)
        count, num_rows = best_BNJ.shape[-1], len(best_BNJ)
        ranks, parents = torch.tensor(level.ranks), torch.tensor(level.parents)
        flat_C = to_device(parents * count + ranks.clamp(max=count - 1), best_BNJ.device)
        real_BC, extended_BC = ((ranks < count).expand(num_rows, -1), torch.tensor(level.extended).expand(num_rows, -1))
        if frontier.shapes is not None:  # the first nodes of the shape: a tree, because parents come first
            widths_B1 = torch.tensor([[shape.width] for shape in frontier.shapes])
            real_BC = real_BC & (torch.tensor(level.nodes) < widths_B1)
            extended_BC = torch.tensor(level.first_children) < widths_B1
        return Children(best_BNJ.flatten(1)[:, flat_C], parents.expand(num_rows, -1), real_BC, extended_BC=extended_BC)
