"""A radix tree of token ids whose keys and values are held: each part of a path once, whoever reads it.

A path is a sequence of first tokens, and lies in one part or several, one after the other. Where a path leaves another
in the middle of a part, that part is split.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from specdec.models.kv import KVStorage

Ids = NDArray[np.int64]


@dataclass(eq=False, slots=True)
class Part:
    """Tokens after those of the parts above, their keys and values, and the rows whose paths end here."""

    tokens: Ids
    kv: KVStorage  # of one row
    above: Part | None
    start: int  # position of the first token
    below: list[Part] = field(default_factory=list)
    rows: dict[int, int] = field(default_factory=dict)  # and the position up to which each reads
    awaited: int = 0  # the position up to which a row that is about to be admitted reads

    @property
    def end(self) -> int:
        """The position after the last token."""
        return self.start + len(self.tokens)

    def path(self) -> list[Part]:
        """The parts up to this one, from the first on."""
        path, part = [self], self.above
        while part is not None:
            path.append(part)
            part = part.above
        return path[::-1]

    def cut(self, first: int, last: int) -> None:
        """Keep what is between two positions."""
        self.kv = self.kv.copied(0, first - self.start, last - self.start)
        self.tokens, self.start = self.tokens[first - self.start : last - self.start], first


class PrefixTree:
    """Parts by their tokens.

    Args:
        least: the fewest tokens that are read of a part; one that has fewer is read whole.
    """

    def __init__(self, least: int) -> None:
        self.least = least
        self._first: list[Part] = []

    def parts(self) -> list[Part]:
        """All parts, those above before those below."""
        found = [*self._first]
        for part in found:  # which grows
            found += part.below
        return found

    def match(self, ids: Ids) -> tuple[Part | None, int]:
        """The part in which the longest path of a content's first tokens ends, and the length of that path."""
        best, length = None, 0
        todo = [*self._first]
        for part in todo:  # which grows
            own = common(part.tokens, ids[part.start :])
            if own < min(self.least, len(part.tokens)):
                continue
            if part.start + own > length:
                best, length = part, part.start + own
            if own == len(part.tokens):
                todo += part.below
        return best, length

    def add(self, tokens: Ids, kv: KVStorage, above: Part | None, start: int) -> Part:
        """Hold tokens after the first part of a path, which ends at ``start``."""
        part = Part(tokens, kv, above, start)
        self._siblings(part).append(part)
        return part

    def split(self, part: Part, at: int) -> Part:
        """Make the first tokens of a part, up to a position, a part of their own; returns it."""
        first = Part(part.tokens, part.kv, part.above, part.start, [part])
        first.cut(part.start, at)
        siblings = self._siblings(part)
        siblings[siblings.index(part)] = first
        part.cut(at, part.end)
        part.above = first
        first.rows = {row: length for row, length in part.rows.items() if length <= at}
        part.rows = {row: length for row, length in part.rows.items() if length > at}
        first.awaited, part.awaited = min(part.awaited, at), part.awaited if part.awaited > at else 0
        return first

    def prune(self, kept: Part | None) -> None:
        """Free what no row reads or is about to; of ``kept`` nothing."""
        for part in reversed(self.parts()):
            last = part.end if part.below or part is kept else max(part.awaited, *part.rows.values(), 0)
            if last <= part.start:
                self._siblings(part).remove(part)
            elif last < part.end:
                part.cut(part.start, last)

    def _siblings(self, part: Part) -> list[Part]:
        return self._first if part.above is None else part.above.below


def common(one: Ids, other: Ids) -> int:
    """How many first tokens are equal."""
    size = min(len(one), len(other))
    differ = one[:size] != other[:size]
    return int(differ.argmax()) if differ.any() else size


def shared_parts(contents: list[Ids], held: list[int], least: int) -> list[tuple[list[int], int]]:
    """What to hold so that no two contents keep ``least`` first tokens twice that they have in common.

    Contents in the order of their tokens are the leaves of a radix tree. A node of it is held if its contents have
    ``least`` tokens more in common than is held of any of them.

    Args:
        held: first tokens of each content that are held already.

    Returns:
        Groups of places among the contents, and the number of tokens that each group has in common; a part of what a
        group has in common comes before the whole.
    """
    held, groups = list(held), list[tuple[list[int], int]]()
    order = sorted(range(len(contents)), key=lambda b: contents[b].tolist())
    steps = [common(contents[a], contents[b]) for a, b in itertools.pairwise(order)]
    nodes = [(0, len(order))]
    for first, last in nodes:  # which grows: no recursion
        if last - first < 2:
            continue
        group, length = order[first:last], min(steps[first : last - 1])
        if length - max(held[b] for b in group) >= least:
            groups.append((group, length))
            for b in group:
                held[b] = length
        ends = [i + 1 for i in range(first, last - 1) if steps[i] == length]
        nodes += zip([first, *ends], [*ends, last], strict=True)
    return groups
