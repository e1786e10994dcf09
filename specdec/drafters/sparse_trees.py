"""PPD's dynamic sparse trees: which guesses are verified, and how many prompt tokens follow each of them.

A row is in state d if d prompt tokens followed its last accepted node, so that guesses for d places are known. In state
d the N_d most probable nodes of depth at most d are verified; each node, and the root, is followed by a chain of its
own of 1 to M prompt tokens, which give the guesses of the next round if the accepted path ends there. Prompt tokens
after a node at which no path ever ends would be wasted: within a budget of nodes, they are dropped where the loss is
smallest. With the accuracies of the guesses this is a Markov chain over the states; the sizes N_d are those with the
most accepted tokens under its stationary distribution. Source: Chen et al. 2024, arXiv 2405.18628 (PPD), section 4.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from specdec.drafters.ranked_trees import Accuracies, RankedTree, most_probable

SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128)  # numbers of candidates that are tried
MAX_TRIED = 2000  # combinations of sizes


@dataclass(frozen=True, slots=True)
class SparseTree:
    """The candidates of a state, and the prompt tokens after the root and after each candidate."""

    candidates: RankedTree
    num_probes: list[int]

    @property
    def num_nodes(self) -> int:
        """Candidates and prompt tokens."""
        return self.candidates.num_nodes + sum(self.num_probes)


@dataclass(frozen=True, slots=True)
class SparseTrees:
    """The trees of states 1 to M, and what they are expected to yield."""

    by_state: list[SparseTree]
    stationary: NDArray[np.float64]  # share of rounds in each state

    @property
    def num_expected(self) -> float:
        """Accepted tokens per round, in the long run."""
        return float(self.stationary @ [tree.candidates.num_expected for tree in self.by_state])


def best_trees(accuracies: Accuracies, budget: int) -> SparseTrees:
    """The sizes with the most accepted tokens whose trees have at most ``budget`` nodes each, found by trying them.

    ``budget`` is at least 3: a candidate, and a prompt token after it and after the root.
    """
    num_states = len(accuracies)
    largest = [most_probable(accuracies[:d], (budget - 1) // 2) for d in range(1, num_states + 1)]
    sizes = [_tried(tree.num_nodes, int(MAX_TRIED ** (1 / num_states))) for tree in largest]
    best: SparseTrees | None = None
    for combination in product(*sizes):
        chosen = [tree.first(size) for tree, size in zip(largest, combination, strict=True)]
        values = [tree.num_expected for tree in chosen]
        trees = [SparseTree(tree, allocated(tree.ends(), values, budget - tree.num_nodes)) for tree in chosen]
        found = SparseTrees(trees, stationary(transitions(trees)))
        if best is None or found.num_expected > best.num_expected + 1e-12:
            best = found
    assert best is not None
    return best


def allocated(ends: Sequence[float], values: Sequence[float], budget: int) -> list[int]:
    """Prompt tokens after each node: all M everywhere, less those whose loss is smallest until ``budget`` are left.

    Args:
        ends: the probability that the accepted path ends at the root, and at each node.
        values: accepted tokens that are expected of the next round in states 1 to M.
    """
    counts = [len(values)] * len(ends)
    gains = [after - before for before, after in pairwise(values)]  # of the second prompt token, the third, ...
    losses = [(end * gains[-1], -node) for node, end in enumerate(ends)] if gains else []
    heapq.heapify(losses)  # of equal losses the deepest node's first
    for _ in range(sum(counts) - budget):
        _, node = heapq.heappop(losses)
        counts[-node] -= 1
        if counts[-node] > 1:
            heapq.heappush(losses, (ends[-node] * gains[counts[-node] - 2], node))
    return counts


def transitions(trees: Sequence[SparseTree]) -> NDArray[np.float64]:
    """(M, M): from each state to the next one, by the node at which the accepted path ends."""
    matrix = np.zeros((len(trees), len(trees)))
    for state, tree in enumerate(trees):
        for end, count in zip(tree.candidates.ends(), tree.num_probes, strict=True):
            matrix[state, count - 1] += end
    return matrix


def stationary(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of rounds in each state, from state M on: the state of a row whose prompt has just been read."""
    lazy = (matrix + np.eye(len(matrix))) / 2  # the same shares, and no period
    for _ in range(40):  # 2 ** 40 steps
        lazy = lazy @ lazy
        lazy /= lazy.sum(axis=1, keepdims=True)
    share: NDArray[np.float64] = lazy[-1]
    return share


def _tried(largest: int, count: int) -> list[int]:
    """Up to ``count`` sizes, evenly over those that are possible."""
    possible = [size for size in SIZES if size < largest] + [largest]
    places = np.linspace(0, len(possible) - 1, min(max(count, 2), len(possible))).round().astype(int)
    return [possible[place] for place in dict.fromkeys(places.tolist())]
