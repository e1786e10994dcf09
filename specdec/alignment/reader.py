"""Prefill of one model: feeding known tokens, whole or in chunks, to its alignment.

Rows of very different lengths are fed in several forwards: a long prompt would otherwise pad all others to its length,
and a padded token costs as much as a real one.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from specdec.alignment.base import Alignment, Kept
from specdec.alignment.layout import padded
from specdec.core.outputs import LOGITS, Outputs
from specdec.core.sequence import Sequence

FORWARD_TOKENS = {"cpu": 32, "cuda": 512}
"""Tokens that cost as much as the fixed part of a forward: loading the weights and launching the kernels."""

HiddenObserver = Callable[[list[Sequence], Tensor, list[list[int]]], None]


class Reader:
    """Extends rows' caches to a given length. A row is admitted with its first tokens, not before.

    ``observe_hidden`` receives ``hidden_layers`` of the tokens read, as `Drafter` describes; without layers, nothing.
    """

    def __init__(
        self,
        alignment: Alignment,
        observe_hidden: HiddenObserver | None = None,
        hidden_layers: tuple[int, ...] = (),
    ) -> None:
        self.alignment = alignment
        self._observe_hidden = observe_hidden if hidden_layers else None
        self._outputs = Outputs(logits=False, hidden=hidden_layers) if hidden_layers else LOGITS
        self._admitted: set[int] = set()

    def admitted(self, row: Sequence) -> bool:
        """Whether the row has a cache."""
        return row.index in self._admitted

    def length(self, row: Sequence) -> int:
        """Tokens of the row that its cache holds."""
        return self.alignment.length(row.index) if self.admitted(row) else 0

    def read(self, rows: list[Sequence], stops: list[int]) -> None:
        """Extend each row's cache to its first ``stops[b]`` tokens; one that holds them already is left as it is.

        A new row gets more of its prompt if the alignment holds that for several rows.
        """
        if chunk := self.alignment.reads_at_once:
            starts = [self.length(row) for row in rows]
            longest = max((stop - start for start, stop in zip(starts, stops, strict=True)), default=0)
            for end in range(chunk, longest, chunk):
                self._read(rows, [min(stop, start + end) for start, stop in zip(starts, stops, strict=True)])
        self._read(rows, stops)

    def _read(self, rows: list[Sequence], stops: list[int]) -> None:
        new = [(row, stop) for row, stop in zip(rows, stops, strict=True) if not self.admitted(row)]
        old = [
            (row, stop) for row, stop in zip(rows, stops, strict=True) if self.admitted(row) and stop > self.length(row)
        ]
        if self._observe_hidden is not None:
            # An admission returns nothing: to get their hidden states, first tokens are fed like all others.
            self._admit(new, [[] for _ in new])
            old, new = old + [(row, stop) for row, stop in new if stop], []
        if new:
            self.alignment.expect(len(new))
            held = self.alignment.hold([row.prompt_ids[:-1] for row, _ in new])
            new = [(row, max(stop, shared)) for (row, stop), shared in zip(new, held, strict=True)]
            left = [stop - shared for (_, stop), shared in zip(new, held, strict=True)]
        for group in self._groups(left if new else []):
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
        model = self.alignment.model
        if model.execution.ragged:  # padding costs nothing
            return [list(range(len(lengths)))] if lengths else []
        return groups_of_length(lengths, FORWARD_TOKENS.get(model.device.type, 0))

    def probe(self, rows: list[Sequence], ids: tuple[int, ...], probes_MD: Tensor | None) -> None:
        """Feed probes after what the rows' caches hold, to get their hidden states, and drop them."""
        self._feed(rows, [list(ids)] * len(rows), [[] for _ in rows], probes_MD)
        kept: list[Kept] = [self.length(row) for row in rows]
        self.alignment.commit([row.index for row in rows], kept)

    def _feed(
        self, rows: list[Sequence], tokens: list[list[int]], kept: list[list[int]], probes_MD: Tensor | None = None
    ) -> None:
        model, counts = self.alignment.model, [len(part) for part in tokens]
        with model.call_options(self._outputs, probes_MD):
            hidden_BTD = self.alignment.forward([row.index for row in rows], padded(tokens, model.device), counts)
        if self._observe_hidden is not None:
            self._observe_hidden(rows, hidden_BTD, kept)

    def release(self, rows: list[Sequence]) -> None:
        """Drop rows and their caches."""
        known = [row.index for row in rows if self.admitted(row)]
        if known:
            self.alignment.release(known)
            self._admitted.difference_update(known)


def groups_of_length(lengths: list[int], fixed: int) -> list[list[int]]:
    """Split rows into the groups that cost least to feed; returns indices, in the rows' order within a group.

    A group costs its longest row times its number of rows, plus ``fixed``. The best groups are intervals of the rows
    sorted by length: cost(j) = min over i < j of cost(i) + fixed + (j - i) x length(j).
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
