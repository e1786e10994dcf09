"""Reading: feeding tokens that are known already, whole or in chunks, to one model's alignment.

Rows of very different lengths are read in several forwards: one long prompt would otherwise pad all others to its
length, and a padded token costs as much as a real one.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from specdec.alignment.base import Alignment, Kept
from specdec.alignment.layout import padded
from specdec.core.sequence import Sequence

FORWARD_TOKENS = {"cpu": 32, "cuda": 512}
"""Tokens whose reading costs as much as one more forward: its weights are read and its kernels launched once more."""

See = Callable[[list[Sequence], Tensor, list[list[int]]], None]


class Reader:
    """Brings rows' caches up to a wished length. A row is admitted with its first tokens, not before.

    ``see`` is told the last hidden states of what is read, as ``Drafter.see`` describes.
    """

    def __init__(self, alignment: Alignment, see: See | None = None) -> None:
        self.alignment = alignment
        self._see = see
        self._admitted: set[int] = set()

    def admitted(self, row: Sequence) -> bool:
        """Whether the row has a cache at all."""
        return row.index in self._admitted

    def length(self, row: Sequence) -> int:
        """Tokens of the row that its cache holds."""
        return self.alignment.length(row.index) if self.admitted(row) else 0

    def read(self, rows: list[Sequence], stops: list[int]) -> None:
        """Make each row's cache hold its first ``stops[b]`` tokens; a row that holds them keeps what it has."""
        new = [(row, stop) for row, stop in zip(rows, stops, strict=True) if not self.admitted(row)]
        old = [
            (row, stop) for row, stop in zip(rows, stops, strict=True) if self.admitted(row) and stop > self.length(row)
        ]
        if self._see is not None:
            # An admission answers nothing: where hidden states are wanted, the first tokens are fed like all others.
            self._admit(new, [[] for _ in new])
            old, new = old + [(row, stop) for row, stop in new if stop], []
        if new:
            self.alignment.expect(len(new))
        for group in self._groups([stop for _, stop in new]):
            part = [new[i] for i in group]
            self._admit(part, [row.tokens(0)[:stop] for row, stop in part])
        missing = [row.tokens(0)[self.length(row) : stop] for row, stop in old]
        for group in self._groups([len(tokens) for tokens in missing]):
            rows = [old[i][0] for i in group]
            self._feed(rows, [missing[i] for i in group], [list(range(len(missing[i]))) for i in group])
            kept: list[Kept] = [old[i][1] for i in group]
            self.alignment.commit([row.index for row in rows], kept)

    def _admit(self, new: list[tuple[Sequence, int]], contents: list[list[int]]) -> None:
        if new:
            self.alignment.admit([row.index for row, _ in new], contents)
            self._admitted.update(row.index for row, _ in new)

    def _groups(self, lengths: list[int]) -> list[list[int]]:
        return groups_of_length(lengths, FORWARD_TOKENS.get(self.alignment.model.device.type, 0))

    def probe(self, rows: list[Sequence], ids: tuple[int, ...]) -> None:
        """Feed ``ids`` behind what the rows' caches hold, for the sake of their hidden states, and drop them."""
        self._feed(rows, [list(ids)] * len(rows), [[] for _ in rows])
        kept: list[Kept] = [self.length(row) for row in rows]
        self.alignment.commit([row.index for row in rows], kept)

    def _feed(self, rows: list[Sequence], tokens: list[list[int]], kept: list[list[int]]) -> None:
        model, counts = self.alignment.model, [len(part) for part in tokens]
        with model.giving("logits" if self._see is None else "hidden"):
            hidden_BTD = self.alignment.forward([row.index for row in rows], padded(tokens, model.device), counts)
        if self._see is not None:
            self._see(rows, hidden_BTD, kept)

    def release(self, rows: list[Sequence]) -> None:
        """Forget rows and their caches."""
        known = [row.index for row in rows if self.admitted(row)]
        if known:
            self.alignment.release(known)
            self._admitted.difference_update(known)


def groups_of_length(lengths: list[int], fixed: int) -> list[list[int]]:
    """Split rows so that reading costs least; returns indices, in their order within a group.

    A group costs its longest row times its rows, and ``fixed`` on top. The best groups are stretches of the rows in
    order of length, found from the shortest row on: cost(j) = min over i < j of cost(i) + fixed + (j - i) x length(j).
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    costs, starts = [0], [0]
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        cost, start = min((costs[i] + fixed + (end - i) * longest, i) for i in range(end))
        costs.append(cost)
        starts.append(start)
    groups, end = [], len(order)
    while end:
        groups.append(sorted(order[starts[end] : end]))
        end = starts[end]
    return groups
