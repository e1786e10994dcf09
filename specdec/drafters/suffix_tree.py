"""A counted tree of a text's substrings: what followed the last few tokens, and how often. Imports no torch.

Every node is a substring of at most ``depth`` tokens; its count is how often it occurred. Appending a token extends the
``depth`` suffixes of the text by it, so that a token costs ``depth`` steps, however long the text is.
Source: Oliaro et al. 2024, "SuffixDecoding", arXiv 2411.04975, section 3, with a bound on the depth.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush

ROOT = 0


class SuffixTree:
    """Nodes are numbers; their substrings are paths from ROOT."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self._child: dict[tuple[int, int], int] = {}  # (node, token): child
        self._tokens = [-1]  # by node: the last token of its substring
        self._counts = [0]
        self._totals = [0]  # by node: its children's counts together
        self._best = [ROOT]  # by node: the child with the largest count, of equal ones the latest; ROOT: no child
        self._children: list[list[int] | None] = [None]

    def append(self, ends: deque[int], token: int) -> None:
        """Add a token to a text. ``ends``: the nodes of the text's suffixes, the longest first; ROOT is the last."""
        child, counts, totals, best = self._child, self._counts, self._totals, self._best
        for place, node in enumerate(ends):
            key = (node, token)
            found = child.get(key)
            if found is None:
                found = child[key] = self._new(node, token)
            counts[found] += 1
            totals[node] += 1
            if counts[found] >= counts[best[node]] or best[node] == ROOT:
                best[node] = found
            ends[place] = found
        ends.append(ROOT)
        if len(ends) > self.depth:
            ends.popleft()

    def extend(self, tokens: Iterable[int]) -> None:
        """Add a whole text."""
        ends = self.start()
        for token in tokens:
            self.append(ends, token)

    @staticmethod
    def start() -> deque[int]:
        """The suffixes of an empty text."""
        return deque([ROOT])

    def match(self, ends: deque[int], token: int) -> None:
        """Follow a token of another text: ``ends`` keeps the nodes of its suffixes that occur in the tree."""
        child = self._child
        found = [child[node, token] for node in ends if (node, token) in child]
        ends.clear()
        ends.extend(found)
        ends.append(ROOT)
        if len(ends) > self.depth:
            ends.popleft()

    def longest_followed(self, ends: deque[int]) -> int:
        """Length of the longest of a text's suffixes that something followed; 0 if there is none."""
        return next((len(ends) - 1 - place for place, node in enumerate(ends) if self._totals[node]), 0)

    def follow(self, node: int, max_tokens: int, min_prob: float) -> Guess:
        """The most frequent continuation of a node, while its path is at least so probable."""
        guess, reached = Guess(), 1.0
        while len(guess.tokens) < max_tokens and (child := self._best[node]) != ROOT:
            reached *= self._counts[child] / self._totals[node]
            if reached < min_prob:
                break
            guess.add(self._tokens[child], len(guess.tokens) - 1, reached)
            node = child
        return guess

    def grow(self, node: int, max_depth: int, max_nodes: int, min_prob: float) -> Guess:
        """The most probable continuations of a node as a tree, the most probable node first."""
        guess, heap = Guess(), list[tuple[float, int, int, int]]()

        def offer(node: int, parent: int, depth: int, reached: float) -> None:
            for child in self._children[node] or () if depth < max_depth else ():
                prob = reached * self._counts[child] / self._totals[node]
                if prob >= min_prob:
                    heappush(heap, (-prob, -child, parent, depth + 1))

        offer(node, -1, 0, 1.0)
        while heap and len(guess.tokens) < max_nodes:
            negative, child, parent, depth = heappop(heap)
            guess.add(self._tokens[-child], parent, -negative)
            offer(-child, len(guess.tokens) - 1, depth, -negative)
        return guess

    def _new(self, parent: int, token: int) -> int:
        node = len(self._tokens)
        self._tokens.append(token)
        self._counts.append(0)
        self._totals.append(0)
        self._best.append(ROOT)
        self._children.append(None)
        siblings = self._children[parent]
        if siblings is None:
            self._children[parent] = [node]
        else:
            siblings.append(node)
        return node


@dataclass(slots=True)
class Guess:
    """Drafted tokens, each one's parent (-1: the last committed token), and the expected number that is right."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    expected: float = 0.0  # sum of the nodes' path probabilities

    def add(self, token: int, parent: int, prob: float) -> None:
        """Add a node; its parent is there already."""
        self.tokens.append(token)
        self.parents.append(parent)
        self.expected += prob
