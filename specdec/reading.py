"""Reading: feeding tokens that are known already, whole or in chunks, to one model's alignment."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from specdec.alignment.base import Alignment, Kept
from specdec.alignment.layout import padded
from specdec.sequence import Sequence

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
        if new:
            # An admission answers nothing: where hidden states are wanted, the first tokens are fed like all others.
            first = [row.tokens(0)[:stop] if self._see is None else [] for row, stop in new]
            self.alignment.admit([row.index for row, _ in new], first)
            self._admitted.update(row.index for row, _ in new)
            if self._see is not None:
                old += [(row, stop) for row, stop in new if stop]
        if old:
            keys = [row.index for row, _ in old]
            missing = [row.tokens(0)[self.length(row) : stop] for row, stop in old]
            self._feed([row for row, _ in old], missing, [list(range(len(part))) for part in missing])
            kept: list[Kept] = [stop for _, stop in old]
            self.alignment.commit(keys, kept)

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
