"""Combs: one sample of drafted tokens that contains a tree of every shape (K, L1, L2) up to a depth.

A comb is a trunk of D tokens, and K paths from each place before its end to the full depth. The trunk goes on as the
first of them: it is drawn independently of the others, from the same distributions. The tree of a shape is the
trunk up to L1 and the first K paths from there, cut to L2 tokens; so it has the law of a drafted one. Nodes are not
merged: two paths may hold the same tokens. Nodes stand level by level, in a level the trunk first, then the paths by
where they fork. Shape letters: R combs, N nodes, C columns, K paths, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from specdec.core.round import Draft
from specdec.trees.base import RowShape


@dataclass(frozen=True)
class CombLayout:
    """Where the nodes of a comb stand."""

    num_paths: int
    depth: int

    def width(self, level: int) -> int:
        """Nodes of a level; level 0 holds the first drafted tokens."""
        return 1 + (self.num_paths - 1) * (level + 1)

    def start(self, level: int) -> int:
        """The number of a level's first node."""
        return sum(map(self.width, range(level)))

    def parents(self, level: int) -> list[int]:
        """For each node of a level its parent's place in the level before."""
        old = self.width(level - 1) if level else 1
        return [*range(old), *[0] * (self.width(level) - old)]

    def node(self, fork: int, path: int, place: int) -> int:
        """The number of a path's node; path 0 is the trunk."""
        slot = 0 if path == 0 else 1 + fork * (self.num_paths - 1) + path - 1
        return self.start(fork + place) + slot

    def column(self, fork: int, path: int, place: int) -> int:
        """The column (0: the root, n + 1: node n) after which that node was drawn."""
        if fork + place == 0:
            return 0
        return 1 + (self.node(fork, path, place - 1) if place else self.node(0, 0, fork - 1))

    @cached_property
    def shapes(self) -> list[RowShape]:
        """No draft, chains, and every (K, L1, L2) of several paths within the comb."""
        chains = [RowShape(1, 0, depth) for depth in range(self.depth + 1)]
        return chains + [
            RowShape(paths, trunk, depth)
            for paths in range(2, self.num_paths + 1)
            for trunk in range(self.depth)
            for depth in range(trunk + 1, self.depth + 1)
        ]


@dataclass(frozen=True, slots=True)
class Combs:
    """Sampled combs, with both models' distributions where tokens were drawn."""

    layout: CombLayout
    tokens_RN: Tensor
    p_RCV: Tensor  # float64; column 0 is the root, column n + 1 node n, without the last level
    q_RCV: Tensor

    def drafts(self, shape: RowShape) -> tuple[Draft, Tensor]:
        """The drafts (R rows) of a shape, as the engine makes them, and the target's distributions (R, T, V)."""
        tokens = self.tokens_RN.tolist()
        trees = [_merged(self.layout, row, shape) for row in tokens]
        width = max(len(columns) for _, columns, _ in trees)
        tokens_RG = torch.zeros(len(trees), width, dtype=torch.long)
        columns_RT = torch.zeros(len(trees), width + 1, dtype=torch.long)
        for r, (nodes, columns, _) in enumerate(trees):
            tokens_RG[r, : len(nodes)] = torch.tensor([tokens[r][node] for node in nodes], dtype=torch.long)
            columns_RT[r, 1 : len(columns) + 1] = torch.tensor([node + 1 for node in nodes])
        last = self.p_RCV.shape[1] - 1  # leaves have no columns, and need none
        rows_R1, columns_RT = torch.arange(len(trees))[:, None], columns_RT.clamp(max=last)
        draft = Draft(
            tokens_RG,
            [len(nodes) for nodes, _, _ in trees],
            [parents for _, parents, _ in trees],
            self.q_RCV[rows_R1, columns_RT],
            [draws for *_, draws in trees],
        )
        return draft, self.p_RCV[rows_R1, columns_RT]


def _drawn(layout: CombLayout, shape: RowShape) -> Iterator[tuple[int, int, int]]:
    """(fork, path, place) of a shape's nodes in the order of their draws."""
    for place in range(shape.trunk):
        yield 0, 0, place
    for place in range(shape.depth - shape.trunk):
        for path in range(shape.width):
            yield shape.trunk, path, place


def _merged(layout: CombLayout, tokens: list[int], shape: RowShape) -> tuple[list[int], list[int], list[int]]:
    """A comb's nodes in the tree of a shape, equal paths merged: comb nodes, parents, draws."""
    names: dict[tuple[int, ...], int] = {(): -1}
    texts: dict[int, tuple[int, ...]] = {0: ()}  # by column
    nodes, parents, draws = list[int](), list[int](), list[int]()
    for place in _drawn(layout, shape):
        node, before = layout.node(*place), texts[layout.column(*place)]
        text = texts[node + 1] = (*before, tokens[node])
        if text not in names:
            names[text] = len(nodes)
            nodes.append(node)
            parents.append(names[before])
        draws.append(names[text])
    return nodes, parents, draws
