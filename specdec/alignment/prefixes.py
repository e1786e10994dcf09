"""First tokens that several rows have in common, whose keys and values are held once.

Rows share a prefix if their first token ids are equal, as far as they are; no id has a meaning. A row reads the first
columns of one prefix, as many as it has in common with it, so that later rows may share less of a prefix than earlier
ones. A row that was alone shares its first tokens when another comes that begins with them: they become a prefix,
without being computed again. A prefix is held while rows read it, and until other rows come that do not.

Source of the idea: Hydragen, arXiv 2402.05099; here one level, and any number of prefixes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from specdec.models.kv import KVStorage
from specdec.models.shared import SharedColumns

CHUNK_TOKENS = 512
"""Tokens of a prefix that are computed at once, to bound a forward's memory."""

Ids = NDArray[np.int64]


@dataclass(eq=False, slots=True)
class Prefix:
    """Tokens, their keys and values, and the rows that read them."""

    tokens: Ids
    kv: KVStorage
    rows: set[int] = field(default_factory=set)
    awaited: bool = False  # rows that are about to be admitted share it


class Columns(Protocol):
    """What has the rows' own columns, and makes those of a prefix: storages of one row."""

    def computed(self, tokens: list[int]) -> KVStorage:
        """The keys and values of tokens."""

    def copied(self, row: int, length: int) -> KVStorage:
        """A copy of a row's first columns."""

    def may_move(self, row: int) -> bool:
        """Whether all of a row's tokens are committed."""

    def drop_first(self, row: int, length: int) -> None:
        """Remove a row's first columns; those after them take their places."""


class Prefixes:
    """The prefixes of one model's rows.

    Args:
        least: the fewest common tokens that are shared; 0: none ever are.
    """

    def __init__(self, least: int, columns: Columns) -> None:
        self.least = least
        self._columns = columns
        self._held: list[Prefix] = []
        self._of: dict[int, Prefix] = {}
        self._alone: dict[int, Ids] = {}  # first tokens of the rows that read no prefix
        self.lengths: dict[int, int] = {}  # how many columns of its prefix a row reads; only of rows that read any

    def hold(self, contents: list[list[int]]) -> list[int]:
        """Hold what these contents of new rows share, with each other or with rows before; returns how much of each."""
        ids = [np.array(content, dtype=np.int64) for content in contents]
        alone = [row for row in self._alone if self._columns.may_move(row)]
        every = [*ids, *(self._alone[row] for row in alone)]
        have = [self._best(own)[1] for own in ids] + [0] * len(alone)
        for group, length in best_groups(every, have, self.least):
            self._make(every[group[0]][:length], [alone[b - len(ids)] for b in group if b >= len(ids)])
        best = [self._best(own) for own in ids]
        for prefix, _ in best:
            if prefix is not None:
                prefix.awaited = True
        self._held = [prefix for prefix in self._held if prefix.rows or prefix.awaited]
        return [length for _, length in best]

    def admit(self, rows: list[int], contents: list[list[int]]) -> list[int]:
        """Let new rows read prefixes; returns how many of their first tokens each reads there."""
        if not self.least:
            return [0] * len(rows)
        lengths = self.hold(contents)
        for row, content in zip(rows, contents, strict=True):
            prefix, length = self._best(np.array(content, dtype=np.int64))
            if prefix is None:
                self._alone[row] = np.array(content, dtype=np.int64)
            else:
                self._read(row, prefix, length)
        for prefix in {self._of[row] for row in rows if row in self._of}:
            prefix.awaited = False
        return lengths

    def cut(self, row: int, length: int) -> None:
        """A row keeps at most its first ``length`` tokens."""
        if length < self.lengths.get(row, 0):
            self.lengths[row] = length
        if row in self._alone:
            self._alone[row] = self._alone[row][:length]

    def release(self, rows: list[int]) -> None:
        """Rows are gone; a prefix that nobody reads is freed when other rows come that do not share it."""
        for row in rows:
            self._alone.pop(row, None)
            if self.lengths.pop(row, None) is not None:
                self._of.pop(row).rows.discard(row)

    def of(self, rows: list[int]) -> SharedColumns | None:
        """What the rows of a forward read before their own columns."""
        used = list(dict.fromkeys(self._of[row] for row in rows if self.lengths.get(row)))
        if not used:
            return None
        places = {id(prefix): place for place, prefix in enumerate(used)}
        of_B = [places[id(self._of[row])] if self.lengths.get(row) else -1 for row in rows]
        lengths_B = torch.tensor([self.lengths.get(row, 0) for row in rows])
        return SharedColumns(tuple(prefix.kv for prefix in used), of_B, lengths_B)

    def content(self, row: int) -> torch.Tensor | None:
        """The keys and values (N, H, P, D) that a row reads here; None if it reads none."""
        if not self.lengths.get(row):
            return None
        return self._of[row].kv.data_NBHSD[:, 0, :, : self.lengths[row]]

    @property
    def num_columns(self) -> int:
        """Columns of all prefixes that are held."""
        return sum(len(prefix.tokens) for prefix in self._held)

    def _make(self, tokens: Ids, alone: list[int]) -> None:
        """Hold these tokens. Rows that have columns of them in their own slots read them here from now on."""
        length = len(tokens)
        kv = self._columns.copied(alone[0], length) if alone else self._columns.computed(tokens.tolist())
        self._held.append(Prefix(tokens, kv))
        for row in alone:
            self._columns.drop_first(row, length)
            self._read(row, self._held[-1], length)
            del self._alone[row]

    def _read(self, row: int, prefix: Prefix, length: int) -> None:
        self._of[row], self.lengths[row] = prefix, length
        prefix.rows.add(row)

    def _best(self, ids: Ids) -> tuple[Prefix | None, int]:
        """The prefix of which a content has most tokens, and how many; none if they are too few to share."""
        best, length = None, 0
        for prefix in self._held:
            if (own := common(prefix.tokens, ids)) > length and own >= self.least:
                best, length = prefix, own
        return best, length


def common(one: Ids, other: Ids) -> int:
    """How many first tokens are equal."""
    size = min(len(one), len(other))
    differ = one[:size] != other[:size]
    return int(differ.argmax()) if differ.any() else size


def best_groups(contents: list[Ids], have: list[int], least: int) -> list[tuple[list[int], int]]:
    """Disjoint groups of contents that save most columns if each group holds its common tokens once.

    A group of n saves n - 1 times its common tokens, less what its contents share already. Contents in the order of
    their tokens are the leaves of a radix tree; every node of it is one group, or left to its children.

    Args:
        have: tokens that each content shares already. least: the fewest tokens of a group.

    Returns:
        Places among the contents, and the number of tokens that they have in common.
    """
    order = sorted(range(len(contents)), key=lambda b: contents[b].tolist())
    steps = [common(contents[a], contents[b]) for a, b in itertools.pairwise(order)]

    spans, below = [(0, len(order))], list[tuple[int, int]]()  # nodes, parents before children: no recursion
    for first, last in spans:  # which grows
        length = min(steps[first : last - 1], default=0)
        ends = [i + 1 for i in range(first, last - 1) if steps[i] == length]
        below.append((len(spans), len(spans) + len(ends) + 1 if ends else len(spans)))
        spans += zip([first, *ends], [*ends, last], strict=True) if ends else []
    best: list[tuple[int, list[tuple[list[int], int]]]] = [(0, [])] * len(spans)
    for node in range(len(spans) - 1, -1, -1):
        (first, last), parts = spans[node], best[slice(*below[node])]
        saved, groups = sum(part[0] for part in parts), [group for part in parts for group in part[1]]
        length = min(steps[first : last - 1], default=0)
        more = [b for b in order[first:last] if have[b] < length]
        gain = sum(length - have[b] for b in more) - length
        best[node] = (gain, [(more, length)]) if length >= least and gain > saved else (saved, groups)
    return best[0][1]
