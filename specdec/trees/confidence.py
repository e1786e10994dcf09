"""The most probable nodes of all (EAGLE-2's dynamic tree).

Shape letters: B rows, N nodes, J candidates of a node, C children of a level.
"""

from __future__ import annotations

import torch

from specdec.core.siblings import CHOSEN
from specdec.trees.base import Children, Tree, at_least
from specdec.trees.drawing import most_probable
from specdec.trees.frontier import Frontier


class ConfidenceTree(Tree):
    """The nodes of the largest cumulative log-probability, which is the draft's estimate of being accepted.

    On every level the best ``top_k`` nodes are extended by their ``top_k`` best tokens; of all these the best
    ``num_nodes`` stay. They include their ancestors, because a log-probability only falls along a path.
    Source: Li et al. 2024, arXiv 2406.16858 (EAGLE-2).
    """

    siblings = CHOSEN
    shaped = True

    def __init__(self, *, top_k: int, num_nodes: int) -> None:
        self.top_k = at_least("top_k", top_k)
        self.num_kept = self._most = at_least("num_nodes", num_nodes)

    def num_nodes(self, depth: int) -> int:
        candidates = self.top_k + max(depth - 1, 0) * self.top_k**2
        return min(self.num_kept or candidates, candidates) if depth else 0

    def widths(self) -> list[int]:
        return [self._most // share for share in (4, 2) if self._most >= share]

    def num_fed(self, depth: int) -> int:
        return self.top_k * max(depth - 1, 0)

    def grow(self, frontier: Frontier) -> Children:
        log_probs_BNV = frontier.log_probs()
        tokens_BNJ = most_probable(log_probs_BNV, self.top_k)
        before_BN = frontier.state.get("score")
        scores_BNJ = log_probs_BNV.gather(-1, tokens_BNJ).double()
        if before_BN is not None:
            scores_BNJ = scores_BNJ + before_BN[..., None]
        scores_BC = torch.where(frontier.real_BN[..., None], scores_BNJ, -torch.inf).flatten(1)
        order_BC = scores_BC.argsort(dim=1, descending=True, stable=True)
        places_BC = order_BC.argsort(dim=1)
        num_nodes, count = tokens_BNJ.shape[1:]
        real_BC = scores_BC > -torch.inf
        return Children(
            tokens_BNJ.flatten(1),
            torch.arange(num_nodes, device=order_BC.device).repeat_interleave(count).expand(len(order_BC), -1),
            real_BC,
            extended_BC=places_BC < self.top_k,
            scores_BC=scores_BC,
            state={"score": scores_BC},
        )
