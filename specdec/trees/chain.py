"""A chain: one child per node, drawn from the draft's distribution."""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.core.sampling import argmax, draw
from specdec.trees.base import Children, Tree
from specdec.trees.frontier import Frontier


class ChainTree(Tree):
    """No tree: as many nodes as the depth."""

    def num_nodes(self, depth: int) -> int:
        return depth

    def grow(self, frontier: Frontier) -> Children:
        return chain_of(frontier)


def chain_of(frontier: Frontier) -> Children:
    """One child per row, after its one node."""
    return single(first_tokens(frontier))


def single(tokens_B1: Tensor) -> Children:
    """A level of one child per row, as is known without waiting for the device."""
    num_rows = len(tokens_B1)
    return Children(tokens_B1, torch.zeros(num_rows, 1, dtype=torch.long), torch.ones(num_rows, 1, dtype=torch.bool))


def first_tokens(frontier: Frontier) -> Tensor:
    """(B, 1): the token of each row's first node, drawn with its first random number; the argmax in greedy rows."""
    if not frontier.samples:
        return argmax(frontier.scores_BNV[:, :1])
    probs_BV = frontier.probs()[:, 0]
    tokens_B = draw(probs_BV, frontier.numbers(1)[:, 0])
    return tokens_B.clamp(max=probs_BV.shape[-1] - 1)[:, None]  # NaN draws no token; the verifier reports it
