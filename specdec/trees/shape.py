"""Shapes of fixed trees: reading and checking one, and the best one for measured acceptance. Imports no torch.

A node is a parent and a rank: rank r stands for the (r + 1)-th most probable token after the parent.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

from specdec.errors import ConfigError

ASSUMED = [[0.6 * 0.3**rank for rank in range(8)]] * 16
"""Chances by depth and rank where nothing was measured: six in ten first choices are right, and ranks fall off fast."""

MAX_RANK = 255


@dataclass(frozen=True, slots=True)
class ShapeLevel:
    """The nodes of one depth."""

    parents: list[int]  # places among the nodes of the level before that have children; 0 at depth 1
    ranks: list[int]
    extended: list[bool]  # which nodes have children
    nodes: list[int]  # their numbers in the shape
    first_children: list[int]  # the numbers of their first children; where there are none, that of no node


@dataclass(frozen=True, slots=True)
class Shape:
    """A tree; parents come before their children, and -1 is the last committed token."""

    parents: list[int]
    ranks: list[int]

    @property
    def levels(self) -> list[ShapeLevel]:
        """The nodes by depth."""
        found, before = [], [-1]
        while nodes := [node for node, parent in enumerate(self.parents) if parent in before]:
            having = [node for node in nodes if node in self.parents]
            found.append(
                ShapeLevel(
                    [before.index(self.parents[node]) for node in nodes],
                    [self.ranks[node] for node in nodes],
                    [node in having for node in nodes],
                    nodes,
                    [self.parents.index(node) if node in having else len(self.parents) for node in nodes],
                )
            )
            before = having
        return found


def read_shape(path: str) -> Shape:
    """A shape from a JSON file: ``{"parents": [-1, -1, 0], "ranks": [0, 1, 0]}``.

    Raises:
        ConfigError: there is no such file, or it holds no tree.
    """
    try:
        stored: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        parents, ranks = ([_integer(value) for value in stored[key]] for key in ("parents", "ranks"))
    except OSError as error:
        raise ConfigError(f"tree.path={path}: {error.strerror}; write one with python -m specdec.trees") from None
    except (ValueError, TypeError, KeyError):
        raise ConfigError(f"tree.path={path}: it must hold JSON with the lists of integers parents and ranks") from None
    if problem := _problem(parents, ranks):
        raise ConfigError(f"tree.path={path}: {problem}")
    return Shape(parents, ranks)


def _integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is no integer")
    return value


def _problem(parents: list[int], ranks: list[int]) -> str:
    """What is wrong with a tree; empty if nothing is."""
    if len(parents) != len(ranks) or not parents:
        return f"{len(parents)} parents and {len(ranks)} ranks; there must be one of each per node, and a node"
    first: dict[tuple[int, int], int] = {}
    for node, (parent, rank) in enumerate(zip(parents, ranks, strict=True)):
        if not -1 <= parent < len(parents) or rank < 0:
            return f"node {node} has parent {parent} and rank {rank}; parents are nodes or -1, ranks start from 0"
        if rank > MAX_RANK:
            return f"node {node} has rank {rank}; at most {MAX_RANK}, as each costs a pass over the vocabulary"
        if parent >= node:
            return _cycle(parents, node) or f"node {node} comes before its parent {parent}: put parents first"
        if first.setdefault((parent, rank), node) != node:
            return f"nodes {first[parent, rank]} and {node} are the same: rank {rank} after node {parent}"
    return ""


def _cycle(parents: list[int], node: int) -> str:
    """The cycle that a node's ancestors run into; empty if they reach the root."""
    path = [node]
    while 0 <= (parent := parents[path[-1]]) < len(parents):
        if parent in path:
            return f"nodes {' -> '.join(map(str, [*path[path.index(parent) :], parent]))} are a cycle, not a tree"
        path.append(parent)
    return ""


def best_shape(chances: Sequence[Sequence[float]], num_nodes: int) -> Shape:
    """The nodes most likely to be accepted, at most ``num_nodes``: a tree of the most expected accepted tokens.

    Args:
        chances: by depth and rank: the probability that the child of that rank is accepted if its parent is. A node's
            probability is the product along its path, so that the best nodes are found from the root down.
    """
    shape, heap = Shape([], []), list[tuple[float, int, int, int]]()

    def offer(parent: int, depth: int, reached: float) -> None:
        for rank, chance in enumerate(chances[depth] if depth < len(chances) else ()):
            if chance > 0:
                heappush(heap, (-reached * chance, depth, parent, rank))

    offer(-1, 0, 1.0)
    while heap and len(shape.parents) < num_nodes:
        negative, depth, parent, rank = heappop(heap)
        shape.parents.append(parent)
        shape.ranks.append(rank)
        offer(len(shape.parents) - 1, depth + 1, -negative)
    return shape


def expected_accepted(shape: Shape, chances: Sequence[Sequence[float]]) -> float:
    """Expected accepted tokens per round: the sum over nodes of the probability that their whole path is accepted."""
    reached, depths, total = [1.0], [0], 0.0  # index 0 is the root
    for parent, rank in zip(shape.parents, shape.ranks, strict=True):
        depth = depths[parent + 1]
        known = depth < len(chances) and rank < len(chances[depth])
        reached.append(reached[parent + 1] * (chances[depth][rank] if known else 0.0))
        depths.append(depth + 1)
        total += reached[-1]
    return total
