"""Monte-Carlo tree search over a trigram store: which continuations of two tokens are worth verifying.

Every search follows the tree from the root down: to the heaviest child that was not visited yet, or if there is none
to the child of the largest value; from the first new node on it draws successors in proportion to their weights. The
reward is 1 plus the weights along the whole path.
Source: Liu et al. 2024 (ADED, AAAI 2025): its selection value and constants. Its code looks up the weight of the token
before the new one for the reward, which is then nearly constant; here it is the new token's.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from math import log, sqrt

NUM_EXTENDED = 24  # paths, of those visited most, that are extended by a token
EXPLORE, EXPLORE_STEP, EXPLORE_BASE = 32.0, 9.0, 8.0

Pair = tuple[int, int]
Ranked = tuple[list[int], list[float], list[float]]
"""Successors of a pair from the heaviest on, their weights, and the running sums of these."""


def ranked(weights: Mapping[int, float]) -> Ranked:
    """Successors by weight, and of equal ones the smaller id first."""
    tokens = sorted(weights, key=lambda token: (-weights[token], token))
    in_order = [weights[token] for token in tokens]
    return tokens, in_order, list(accumulate(in_order))


class _Node:
    """A path of tokens that the search has visited."""

    __slots__ = ("children", "pair", "parent", "reward", "successors", "visits", "weight")

    def __init__(self, parent: _Node | None, pair: Pair, weight: float) -> None:
        self.parent, self.pair, self.weight = parent, pair, weight
        self.visits, self.reward = 0, 0.0
        self.successors: Ranked | None = None  # None: not looked up yet
        self.children: list[_Node] = []  # of the first successors

    def path(self) -> list[int]:
        tokens, node = [], self
        while node.parent is not None:
            tokens.append(node.pair[1])
            node = node.parent
        return tokens[::-1]


def search(
    look_up: Callable[[Pair], Ranked],
    pair: Pair,
    depth: int,
    max_nodes: int,
    num_searches: int,
    draws: Callable[[int], Sequence[float]],
) -> Iterator[Sequence[int]]:
    """Continuations of ``pair`` in the order in which they deserve a place in a tree of ``max_nodes`` nodes.

    The first is the chain of heaviest successors. If the store knows no more than ``max_nodes`` nodes, all of them come
    without a search.

    Args:
        look_up: a pair's successors; it is asked once per pair.
        draws: that many numbers in [0, 1); called for a search only.
    """
    store = _Remembering(look_up)
    yield _heaviest(store, pair, (), depth)
    everything = _everything(store, pair, depth, max_nodes)
    if everything is not None:
        yield from everything
        return
    nodes = _visited(store, pair, depth, num_searches, draws(num_searches * depth))
    paths = [node.path() for node in nodes]
    for node, path in zip(nodes[:NUM_EXTENDED], paths, strict=False):
        yield _heaviest(store, node.pair, path, min(depth, len(path) + 1))
    yield from paths


class _Remembering(dict[Pair, Ranked]):
    """What was looked up."""

    def __init__(self, look_up: Callable[[Pair], Ranked]) -> None:
        super().__init__()
        self._look_up = look_up

    def __missing__(self, pair: Pair) -> Ranked:
        found = self[pair] = self._look_up(pair)
        return found


def _heaviest(store: _Remembering, pair: Pair, path: Sequence[int], depth: int) -> list[int]:
    """The path with the heaviest successors after it, up to ``depth`` tokens in all."""
    tokens = list(path)
    while len(tokens) < depth and (successors := store[pair][0]):
        tokens.append(successors[0])
        pair = (pair[1], successors[0])
    return tokens


def _everything(store: _Remembering, pair: Pair, depth: int, max_nodes: int) -> list[tuple[int, ...]] | None:
    """All continuations, if they make no more than ``max_nodes`` nodes."""
    found: list[tuple[int, ...]] = []
    level: list[tuple[Pair, tuple[int, ...]]] = [(pair, ())]
    for _ in range(depth):
        level = [((end[1], token), (*path, token)) for end, path in level for token in store[end][0]]
        found += [path for _, path in level]
        if len(found) > max_nodes:
            return None
    return found


def _visited(store: _Remembering, pair: Pair, depth: int, num_searches: int, draws: Sequence[float]) -> list[_Node]:
    """The nodes that the search has visited, the most visited first."""
    root = _Node(None, pair, 0.0)
    root.successors = store[pair]
    found: list[_Node] = []
    for number in range(num_searches):
        node, reward, left = root, 1.0, depth
        while left and node.successors is not None and node.successors[0]:
            node = _child(node)
            reward += node.weight
            left -= 1
        if node.successors is None:
            node.successors = store[node.pair]
            found.append(node)
        end = node.pair
        for step in range(number * depth, number * depth + left):
            tokens, weights, sums = store[end]
            if not tokens:
                break
            drawn = min(bisect(sums, draws[step] * sums[-1]), len(tokens) - 1)
            reward += weights[drawn]
            end = (end[1], tokens[drawn])
        above: _Node | None = node
        while above is not None:
            above.visits += 1
            above.reward += reward
            above = above.parent
    found.sort(key=lambda node: -node.visits)  # stable: a parent was found before its children
    return found


def _child(node: _Node) -> _Node:
    """The heaviest child that was not visited yet; if there is none, the child of the largest value."""
    assert node.successors is not None
    tokens, weights, _ = node.successors
    number = len(node.children)
    if number < len(tokens):
        child = _Node(node, (node.pair[1], tokens[number]), weights[number])
        node.children.append(child)
        return child
    prior = (EXPLORE + log((node.visits + EXPLORE_STEP) / EXPLORE_BASE)) * sqrt(node.visits)
    best, highest = node.children[0], -1.0
    for child in node.children:
        visits = child.visits
        value = child.reward / visits + prior * child.weight / (1 + visits)
        if value > highest:
            best, highest = child, value
    return best
