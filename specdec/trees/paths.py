"""Independent paths: K chains of i.i.d. draws, merged where they agree, after a trunk that all of them share.

Shape letters: B rows, N nodes, K paths, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from specdec.core.siblings import IID
from specdec.core.transfer import to_device
from specdec.errors import ConfigError
from specdec.trees.base import Children, Tree, at_least
from specdec.trees.chain import chain_of, first_tokens
from specdec.trees.drawing import draw_each
from specdec.trees.frontier import Frontier


class PathsTree(Tree):
    """K paths from the last committed token on.

    Source: the drafts of SpecTr (Sun et al. 2023, arXiv 2310.15141) and SpecInfer (Miao et al. 2023).
    """

    siblings = IID
    shaped = True

    def __init__(self, *, num_paths: int) -> None:
        self.num_paths = at_least("num_paths", num_paths)

    def num_nodes(self, depth: int) -> int:
        return self.num_paths * depth

    def widths(self) -> list[int]:
        return [1 << i for i in range((self.num_paths - 1).bit_length())]

    def grow(self, frontier: Frontier) -> Children:
        return branch(frontier, self.num_paths) if frontier.samples else chain_of(frontier)


class DelayedTree(PathsTree):
    """A trunk of drawn tokens, then K paths: drafts agree with the target most at the root, where branches are wasted.

    Source: Thomas et al. 2026, arXiv 2602.16994, (K, L1, L2)-delayed trees; L2 is what the row's depth leaves.
    """

    def __init__(self, *, num_paths: int, trunk: int) -> None:
        super().__init__(num_paths=num_paths)
        self.trunk = at_least("trunk", trunk, 0)

    def largest(self) -> Tree:
        return PathsTree(num_paths=self.num_paths)

    def check(self, depth: int) -> None:
        if 0 < depth <= self.trunk:
            raise ConfigError(f"tree.trunk={self.trunk} leaves no depth for paths: set gamma above it (now {depth})")

    def num_nodes(self, depth: int) -> int:
        return min(depth, self.trunk) + self.num_paths * max(depth - self.trunk, 0)

    def grow(self, frontier: Frontier) -> Children:
        if not frontier.samples:
            return chain_of(frontier)
        if frontier.shapes is None and frontier.depth < self.trunk:
            tokens_B1 = first_tokens(frontier)
            return _drawn_once(tokens_B1)
        return branch(frontier, self.num_paths)


def _drawn_once(tokens_B1: Tensor) -> Children:
    zeros_B1 = torch.zeros(len(tokens_B1), 1, dtype=torch.long)
    return Children(tokens_B1, zeros_B1, torch.ones(len(tokens_B1), 1, dtype=torch.bool), draws_BJ=zeros_B1)


def branch(frontier: Frontier, num_paths: int) -> Children:
    """Every path draws a token after its node; paths of one node that draw the same token stay together.

    The state ``paths`` says which paths lead to a node; without it all of them fork at the row's one node. Where rows
    have shapes of their own, those that are in their trunk draw once, for all paths.
    """
    if frontier.shapes is not None:
        num_paths = max(shape.width for shape in frontier.shapes)
    probs_BNV = frontier.probs()
    num_rows, num_nodes, _ = probs_BNV.shape
    through_BNK = frontier.state.get("paths")
    if through_BNK is None:
        through_BNK = torch.ones(num_rows, num_nodes, num_paths, dtype=torch.bool, device=probs_BNV.device)
    through_BNK = through_BNK & frontier.real_BN[..., None]
    places_BK = through_BNK.long().argmax(1)
    at_BK = places_BK + torch.arange(num_rows, device=places_BK.device)[:, None] * num_nodes
    numbers_BK = frontier.numbers(num_paths)
    tokens_BK = draw_each(probs_BNV, at_BK.flatten(), numbers_BK.flatten()).view(numbers_BK.shape)
    paths_K = torch.arange(num_paths, device=probs_BNV.device)
    drawing_BK = None
    if frontier.shapes is not None:
        widths = [1 if frontier.depth < shape.trunk else shape.width for shape in frontier.shapes]
        trunks = [frontier.depth < shape.trunk for shape in frontier.shapes]
        widths_B, trunk_B = to_device(np.array([widths, trunks]), paths_K.device).unbind(0)
        tokens_BK = torch.where(trunk_B[:, None] > 0, tokens_BK[:, :1], tokens_BK)
        drawing_BK = paths_K < widths_B[:, None]
    same_BKK = (tokens_BK[..., None] == tokens_BK[:, None]) & (places_BK[..., None] == places_BK[:, None])
    first_BK = same_BKK.long().argmax(-1)  # the first path with the same node and token
    real_BK, draws_BK = first_BK == paths_K, first_BK
    if drawing_BK is not None:
        real_BK, draws_BK = real_BK & drawing_BK, torch.where(drawing_BK, first_BK, -1)
    paths_BKK = first_BK[:, None] == paths_K[:, None]
    return Children(tokens_BK, places_BK, real_BK, draws_BJ=draws_BK, state={"paths": paths_BKK})
