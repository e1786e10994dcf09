"""First tokens that several rows have in common, whose keys and values are held once.

Rows share what is equal of their first token ids, as far as it is; no id has a meaning. A row reads a path of a radix
tree: what all rows have in common, then what it has in common with some, and so on, each part held once. Tokens that a
row has to itself become a part when another row comes that has them too, without being computed again. A part is held
while rows read it, and until other rows come that do not.

Source of the idea: Hydragen, arXiv 2402.05099.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch

from specdec.alignment.prefix_tree import Ids, Part, PrefixTree, shared_parts
from specdec.errors import ConfigError
from specdec.models.causal_lm import CausalLM
from specdec.models.kv import KVStorage
from specdec.models.shared import SharedColumns

CHUNK_TOKENS = 512
"""Tokens of a prefix that are computed at once, to bound a forward's memory."""


def check_sharing(model: CausalLM, setting: str, off: str) -> None:
    """Refuse to share columns of a model that has none, or reads those of a row from one place.

    Args:
        setting: what asks for it, as the user gave it. off: what does not.

    Raises:
        ConfigError: naming both.
    """
    name = type(model.module).__name__
    if model.recurrent:
        raise ConfigError(
            f"{setting}: {name} has layers with a recurrent state, which is no column of a cache: set {off}"
        )
    if not model.execution.shares:
        raise ConfigError(
            f"{setting}: the execution of {name} with these numerics ({model.execution.name}) reads all keys of a row "
            f"from one place; set execution=native, numerics=default, or {off}"
        )


class Columns(Protocol):
    """What has the rows' own columns, and makes those of a part: storages of one row."""

    def computed(self, tokens: list[int], after: SharedColumns | None) -> KVStorage:
        """The keys and values of tokens that come after others."""

    def copied(self, row: int, first: int, last: int) -> KVStorage:
        """A copy of a row's own columns between two places."""

    def may_move(self, row: int) -> bool:
        """Whether all of a row's tokens are committed."""

    def begin_at(self, row: int, position: int, before: int) -> None:
        """A row's own columns begin at this position, no longer at ``before``: those from it on move to the front."""


class Prefixes:
    """What one model's rows have in common.

    Args:
        least: the fewest tokens of a part; 0: nothing is shared but what is declared.
    """

    def __init__(self, least: int, columns: Columns) -> None:
        self._least = least
        self._columns = columns
        self._declared: Ids | None = None  # first tokens that are held until the end
        self._tree = PrefixTree(max(least, 1))
        self._ids: dict[int, Ids] = {}  # first tokens of each row, those with which it was admitted
        self._ends: dict[int, Part] = {}  # where the path of a row ends; only of rows that read any

    @property
    def used(self) -> bool:
        """Whether anything can ever be shared."""
        return bool(self._least) or self._declared is not None

    def declare(self, tokens: list[int]) -> None:
        """Hold these first tokens until the end, from the next rows on."""
        self._declared = np.array(tokens, dtype=np.int64)

    def length(self, row: int) -> int:
        """How many first tokens a row reads here."""
        return self._ends[row].rows[row] if row in self._ends else 0

    def hold(self, contents: list[list[int]]) -> list[int]:
        """Hold what these contents of new rows share, with each other or with rows before; returns how much of each.

        Those that an earlier call named are not awaited any more.
        """
        for part in self._tree.parts():
            part.awaited = 0
        return self._hold(contents)

    def admit(self, rows: list[int], contents: list[list[int]]) -> list[int]:
        """Let new rows read what is held; returns how many of their first tokens each reads there."""
        if not self.used:
            return [0] * len(rows)
        lengths = self._hold(contents)
        for row, content in zip(rows, contents, strict=True):
            self._ids[row] = np.array(content, dtype=np.int64)
            part, length = self._tree.match(self._ids[row])
            if part is not None:
                self._read(row, part, length)
                part.awaited = part.awaited if part.awaited > length else 0
        return lengths

    def cut(self, row: int, length: int) -> None:
        """A row keeps at most its first ``length`` tokens."""
        if length < len(self._ids.get(row, ())):
            self._ids[row] = self._ids[row][:length]
            if length < self.length(row):
                part = next((part for part in self._ends[row].path()[::-1] if part.start < length), None)
                self._read(row, part, length)

    def release(self, rows: list[int]) -> None:
        """Rows are gone; what nobody reads is freed when other rows come that do not share it."""
        for row in rows:
            self._ids.pop(row, None)
            self._read(row, None, 0)

    def of(self, rows: list[int]) -> SharedColumns | None:
        """What the rows of a forward read before their own columns."""
        places: dict[Part, int] = {}
        ends = [self._ends.get(row) for row in rows]
        paths = [[places.setdefault(part, len(places)) for part in end.path()] if end else [] for end in ends]
        return _columns(places, paths, [self.length(row) for row in rows]) if places else None

    def content(self, row: int) -> torch.Tensor | None:
        """The keys and values (N, H, P, D) that a row reads here; None if it reads none."""
        if row not in self._ends:
            return None
        parts = [part.kv.data_NBHSD[:, 0] for part in self._ends[row].path()]
        return torch.cat(parts, dim=2)[:, :, : self.length(row)]

    @property
    def num_columns(self) -> int:
        """Columns of all parts that are held."""
        return sum(len(part.tokens) for part in self._tree.parts())

    @property
    def num_bytes(self) -> int:
        """Bytes of their keys and values."""
        return sum(part.kv.data_NBHSD.nbytes for part in self._tree.parts())

    def _hold(self, contents: list[list[int]]) -> list[int]:
        new = [np.array(content, dtype=np.int64) for content in contents]
        movable = [row for row in self._ids if self._columns.may_move(row)]
        if self._declared is not None and new:
            self._make(self._declared, [])
        if self._least:
            every = [*new, *(self._ids[row] for row in movable)]
            held = [self._tree.match(own)[1] for own in every]
            for group, length in shared_parts(every, held, self._least):
                self._make(every[group[0]][:length], [movable[b - len(new)] for b in group if b >= len(new)])
        for row in movable:
            part, length = self._tree.match(self._ids[row])
            if part is not None and length > self.length(row):
                self._columns.begin_at(row, length, before=self.length(row))
                self._read(row, part, length)
        found = [self._tree.match(own) for own in new]
        for part, length in found:
            if part is not None:
                part.awaited = max(part.awaited, length)
        self._tree.prune(None if self._declared is None else self._tree.match(self._declared)[0])
        return [length for _, length in found]

    def _make(self, tokens: Ids, rows: list[int]) -> None:
        """Hold these first tokens; where one of the rows has the missing ones in its own columns, without computing."""
        part, start = self._tree.match(tokens)
        if start == len(tokens):
            return
        if part is not None and start < part.end:
            part = self._tree.split(part, start)
            self._ends.update(dict.fromkeys(part.rows, part))
        path = part.path() if part else []
        for row in rows:
            if (before := self.length(row)) <= start:
                kv = self._columns.copied(row, start - before, len(tokens) - before)
                break
        else:
            after = _columns(path, [list(range(len(path)))], [start]) if path else None
            kv = self._columns.computed(tokens[start:].tolist(), after)
        self._tree.add(tokens[start:], kv, part, start)

    def _read(self, row: int, part: Part | None, length: int) -> None:
        """A row's path ends in this part, or there is none."""
        if row in self._ends:
            del self._ends.pop(row).rows[row]
        if part is not None:
            self._ends[row] = part
            part.rows[row] = length


def _columns(parts: Iterable[Part], paths: list[list[int]], lengths: list[int]) -> SharedColumns:
    """Parts, by place, as a forward reads them."""
    used = list(parts)
    return SharedColumns(tuple(p.kv for p in used), [p.start for p in used], paths, torch.tensor(lengths))
