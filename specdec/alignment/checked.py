"""The Alignment contract as executable checks: an alignment that wraps another one and checks it.

It records every row's tokens itself, and after every call compares with them what the strategy returned and what the
model received (:mod:`specdec.alignment.observation`):

- ``length``: the rows' lengths follow from the calls;
- ``position`` (I2): token j of a row is fed at position j;
- ``visibility`` (I1, I2): a query sees its row's committed tokens, its ancestors and itself, once each, and nothing
  else;
- ``logits``: a token's logits equal those of a fresh forward over its row (on every n-th round);
- ``content``: the committed KV equals that of a fresh forward over the row (on every n-th round).

One broken promise of a row breaks others in consequence; only the first is reported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from specdec.alignment.base import Alignment, Kept
from specdec.alignment.observation import Observed, first_keys, fresh, watch
from specdec.alignment.observed_queries import EXPECTED, Wanted, own_first, problems
from specdec.errors import ConfigError, ContractError
from specdec.models.causal_lm import CausalLM

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
"""Largest difference allowed, relative to the largest value compared: well above rounding (float64 models compute their
norms and softmax in float32), well below a bug."""
_TINY = 1e-6  # lower bound of the value that a difference is relative to


class InvariantError(ContractError):
    """A broken promise of the alignment contract: which one, in which round, for which row and position."""

    def __init__(
        self, invariant: str, round_: int, row: int | None, position: int | None, expected: Any, found: Any
    ) -> None:
        self.invariant, self.round, self.row, self.position = invariant, round_, row, position
        self.expected, self.found = expected, found
        where = f"round {round_}"
        where += "" if row is None else f", row {row}"
        where += "" if position is None else f", position {position}"
        super().__init__(f"invariant {invariant!r} is broken in {where}: expected {expected}, found {found}")


@dataclass(slots=True)
class _Node:
    token: int
    key_E: Tensor  # the first layer's key of this token at its correct position
    parent: int = -1


@dataclass(slots=True)
class _Record:
    """The expected content of a row."""

    committed: list[_Node] = field(default_factory=list)
    nodes: list[_Node] = field(default_factory=list)
    broken: bool = False

    def path(self, node: int) -> list[int]:
        """A node and its ancestors, in order of position."""
        path: list[int] = []
        while node >= 0:
            path.insert(0, node)
            node = self.nodes[node].parent
        return path


class CheckedAlignment(Alignment):
    """Passes every call to ``inner`` and checks its effects.

    Args:
        every: logits and content are compared with fresh forwards in every n-th round (commit); the rest always.
        report: called with each violation; by default it is raised.
    """

    def __init__(
        self,
        inner: Alignment,
        model: CausalLM,
        *,
        every: int = 1,
        report: Callable[[InvariantError], None] | None = None,
    ) -> None:
        self.inner = inner
        self.feeds_given_only = inner.feeds_given_only
        self.model = model
        self.every = every
        self.round = 1
        self._report = report
        self._records: dict[int, _Record] = {}

    def expect(self, num_rows: int) -> None:
        self.inner.expect(num_rows)

    def hold(self, contents: list[list[int]]) -> list[int]:
        return self.inner.hold(contents)

    def declare(self, tokens: list[int]) -> None:
        self.inner.declare(tokens)

    def shared_length(self, row: int) -> int:
        return self.inner.shared_length(row)

    def admit(self, rows: list[int], contents: list[list[int]]) -> None:
        """Prefill, and check all its positions and masks; shared tokens may have been fed before, for other rows."""
        with watch(self.model) as seen:
            self.inner.admit(rows, contents)
        for row, content in zip(rows, contents, strict=True):
            record = self._records[row] = _Record()
            record.nodes = self._make_nodes(content, list(range(len(content))), list(range(-1, len(content) - 1)))
        if seen:  # a strategy may prefill with its first forward instead: then that one is checked
            self._check_queries(rows, [self.inner.shared_length(row) for row in rows], seen)
        for row in rows:
            record = self._records[row]
            record.committed, record.nodes = record.nodes, []
        self._check_lengths()
        if self._sampled:
            self._check_content(rows)

    def release(self, rows: list[int]) -> None:
        """Drop rows; the lengths of the others must not change."""
        self.inner.release(rows)
        for row in rows:
            del self._records[row]
        self._check_lengths()

    def forward(
        self,
        rows: list[int],
        tokens_BT: Tensor,
        num_tokens: list[int] | None = None,
        parents: list[list[int]] | None = None,
    ) -> Tensor:
        """Feed, and check what the model received and, in a sampled round, what it returned."""
        fed = tokens_BT.tolist()
        counts = num_tokens or [tokens_BT.shape[1]] * len(rows)
        if any(max(row[:count], default=0) >= self.model.vocab_size for row, count in zip(fed, counts, strict=True)):
            raise ConfigError("debug=invariants cannot follow probe tokens (drafter=ppd): choose another drafter")
        with watch(self.model) as seen:
            logits_BTV = self.inner.forward(rows, tokens_BT, num_tokens, parents)
        starts = [len(self._records[row].nodes) for row in rows]
        for b, row in enumerate(rows):
            record, start = self._records[row], starts[b]
            links = parents[b][: counts[b]] if parents else list(range(start - 1, start - 1 + counts[b]))
            known = [node.parent for node in record.nodes] + links
            depths = [_depth(known, start + t) for t in range(counts[b])]
            positions = [len(record.committed) + depth for depth in depths]
            record.nodes += self._make_nodes(fed[b][: counts[b]], positions, links)
        self._check_queries(rows, starts, seen)
        self._check_lengths()
        if self._sampled and self.model.outputs.logits and self.model.view is None:
            self._check_logits(rows, starts, logits_BTV[..., : self.model.vocab_size])
        return logits_BTV

    def commit(self, rows: list[int], kept: list[Kept]) -> None:
        """Commit; check the lengths and, in a sampled round, the content of all rows."""
        self.inner.commit(rows, kept)
        for row, keep in zip(rows, kept, strict=True):
            record = self._records[row]
            if isinstance(keep, int):
                record.committed = (record.committed + record.nodes)[:keep]
            else:
                record.committed = record.committed + [record.nodes[node] for node in keep]
            record.nodes = []
        self._check_lengths()
        if self._sampled:
            self._check_content([row for row, record in self._records.items() if not record.nodes])
        self.round += 1

    def length(self, row: int) -> int:
        return self.inner.length(row)

    def content(self, row: int) -> Tensor:
        return self.inner.content(row)

    @property
    def _sampled(self) -> bool:
        return (self.round - 1) % self.every == 0

    def _make_nodes(self, tokens: list[int], positions: list[int], parents: list[int]) -> list[_Node]:
        if not tokens:
            return []
        if self.model.recurrent:  # keys after a mixer depend on all tokens before them
            keys = torch.zeros(len(tokens), 1)
        else:
            keys = first_keys(self.model, tokens, positions)
        return [_Node(token, key, parent) for token, key, parent in zip(tokens, keys, parents, strict=True)]

    def _fail(self, invariant: str, row: int, position: int | None, expected: Any, found: Any) -> None:
        record = self._records[row]
        if record.broken:
            return
        record.broken = True
        error = InvariantError(invariant, self.round, row, position, expected, found)
        if self._report is None:
            raise error
        self._report(error)

    def _check_lengths(self) -> None:
        for row, record in self._records.items():
            found = self.inner.length(row)
            if found != len(record.committed):
                self._fail("length", row, None, f"{len(record.committed)} tokens", found)

    def _check_queries(self, rows: list[int], starts: list[int], seen: list[Observed]) -> None:
        """Every new node must have been a query with its token and position that saw exactly its path.

        Of a model with recurrent states only lengths, logits and content are checked.
        """
        if self.model.recurrent:
            return
        for b, row in enumerate(rows):
            record = self._records[row]
            num_committed, first = len(record.committed), starts[b]
            if first == len(record.nodes) or record.broken:
                continue
            keys_PE = torch.stack([node.key_E for node in record.committed + record.nodes])
            paths = [
                [*range(num_committed), *(num_committed + n for n in record.path(node))]
                for node in range(first, len(record.nodes))
            ]
            expected_QP = torch.zeros(len(paths), len(keys_PE), dtype=torch.bool, device=keys_PE.device)
            for query, path in enumerate(paths):
                expected_QP[query, path[self._first_seen(path) :]] = True
            if self.model.view is not None:
                expected_QP = self.model.view.seen(expected_QP[None])[0]
            tokens = [node.token for node in record.nodes[first:]]
            positions = [len(path) - 1 for path in paths]
            wanted = Wanted(tokens, positions, expected_QP, keys_PE, TOLERANCE[self.model.dtype])
            for query, (kind, found) in problems(wanted, own_first(seen, b)).items():
                self._fail(kind, row, positions[query], EXPECTED[kind], found)

    def _first_seen(self, path: list[int]) -> int:
        """The first node of a path that the last one sees, if every layer has a window or chunks."""
        return self.model.architecture.mask_form.widest.first_seen(len(path) - 1)

    def _check_logits(self, rows: list[int], starts: list[int], logits_BTV: Tensor) -> None:
        for b, row in enumerate(rows):
            record = self._records[row]
            for node in range(starts[b], len(record.nodes)):
                path = record.committed + [record.nodes[n] for n in record.path(node)]
                expected_V = fresh(self.model, [n.token for n in path])[0][-1]
                difference = _share(logits_BTV[b, node - starts[b]], expected_V)
                if difference > TOLERANCE[self.model.dtype]:
                    self._fail(
                        "logits",
                        row,
                        len(path) - 1,
                        "those of a fresh forward",
                        f"a difference of {difference:.2g} of the largest",
                    )

    def _check_content(self, rows: list[int]) -> None:
        for row in rows:
            record = self._records[row]
            found_NHSD = self.inner.content(row)
            if record.broken or not record.committed:
                continue
            expected_NHSD = fresh(self.model, [node.token for node in record.committed])[1]
            if found_NHSD.shape != expected_NHSD.shape:
                self._fail("content", row, None, f"shape {list(expected_NHSD.shape)}", list(found_NHSD.shape))
                continue
            scale_N = expected_NHSD.abs().amax(dim=(1, 2, 3)).clamp(min=_TINY)
            share_NS = (found_NHSD - expected_NHSD).abs().amax(dim=(1, 3)) / scale_N[:, None]
            wrong_NS = ~(share_NS <= TOLERANCE[self.model.dtype])  # a NaN is wrong too
            if wrong_NS.any():
                position = int(wrong_NS.any(0).nonzero()[0])
                part = int(wrong_NS[:, position].nonzero()[0])
                where = f"{'values' if part % 2 else 'keys'} of layer {part // 2}"
                found = f"a difference of {float(share_NS[part, position]):.2g} of the largest in the {where}"
                self._fail("content", row, position, "the KV of a fresh forward", found)


def _share(found: Tensor, expected: Tensor) -> float:
    share = float((found - expected).abs().max() / expected.abs().max().clamp(min=_TINY))
    return share if share == share else float("inf")


def _depth(parents: list[int], node: int) -> int:
    depth = -1
    while node >= 0:
        depth += 1
        node = parents[node]
    return depth
