"""Expansion: every drafted prefix is a copy of its row, and a commit chooses the right copy.

Idea: a rejected suffix is never written, so it need not be cut off. For each node that is fed, its row is copied into
an extra row of the batch that holds exactly the path from the last committed token to that node. A chain of T tokens
makes T copies, a tree one per root-to-node path; every copy is a plain chain, so no tree mask is needed. A commit
takes the last kept node's copy as the row's new content and drops the others.
Cost: T copies of every row's cache per forward, and T (T + 1) / 2 tokens computed for T. A draft, which feeds one token
at a time, copies the row once per token.
Source: batch expansion, as in the first speculative decoding of vLLM (BatchExpansionTop1Scorer), whose model runner
scored one token per sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.alignment.base import Admitted, Alignment, Kept
from specdec.alignment.content import Contents
from specdec.alignment.layout import padded
from specdec.alignment.slots import SlotStorage, feed_chains
from specdec.core.clock import Clock
from specdec.core.transfer import to_device
from specdec.models.causal_lm import CausalLM
from specdec.models.kv import KVStorage


@dataclass(frozen=True, slots=True)
class _Copy:
    """A row of some storage with one row's content, followed by one path of its nodes."""

    kv: KVStorage
    index: int
    length: int


@dataclass(frozen=True, slots=True)
class _Branch:
    """A node to feed: the copy that it extends, and the tokens (columns of row b) that it adds."""

    b: int
    node: int
    base: _Copy
    path: list[int]


class ExpansionAlignment(Alignment):
    """One copy per prefix; see the module's text."""

    feeds_given_only = True
    prompts_by_position = True

    def __init__(self, model: CausalLM, clock: Clock) -> None:
        self.model = model
        self.clock = clock
        self._contents = Contents()
        self._home = SlotStorage(model)  # committed content: column j holds token j
        self._copies: dict[int, dict[int, _Copy]] = {}  # of each row, by node

    @classmethod
    def kept_columns(cls, rows: Admitted) -> float:
        """The rows, and a copy per fed token."""
        return rows.in_flight * rows.columns + rows.batch * rows.num_fed * rows.length

    @classmethod
    def moved_columns(cls, rows: Admitted) -> float:
        """The old storage while a larger one is filled."""
        return rows.in_flight * rows.columns_before

    def admit(self, rows: list[int], contents: list[list[int]]) -> None:
        """Prefill new rows, without copies."""
        self._contents.admit(rows)
        with self.clock.stage("align"):
            self._home.take(rows)
            self._copies.update((row, {}) for row in rows)
        if any(contents):
            slots = [self._home.slot[row] for row in rows]
            tokens_BT = padded(contents, self.model.device)
            counts = [len(content) for content in contents]
            feed_chains(self.model, self._home.kv, slots, [0] * len(rows), tokens_BT, counts, num_logits=1)
        for row, content in zip(rows, contents, strict=True):
            self._contents[row].length = len(content)

    def release(self, rows: list[int]) -> None:
        """Drop rows and their copies."""
        self._contents.release(rows)
        self._home.free(rows)
        for row in rows:
            del self._copies[row]

    def forward(
        self,
        rows: list[int],
        tokens_BT: Tensor,
        num_tokens: list[int] | None = None,
        parents: list[list[int]] | None = None,
    ) -> Tensor:
        """Make a copy per new node, feed its path, and return each copy's last logits."""
        self._contents.require(rows, "forward")
        counts = num_tokens or [tokens_BT.shape[1]] * len(rows)
        branches = []
        for b, row in enumerate(rows):
            branches += self._branches(b, row, counts[b], parents[b] if parents else None)
        if not branches:
            return torch.zeros(
                *tokens_BT.shape, self.model.vocab_size, dtype=self.model.dtype, device=self.model.device
            )
        with self.clock.stage("align"):
            kv = self._expand([branch.base for branch in branches], max(len(branch.path) for branch in branches))
        rows_C = to_device([branch.b for branch in branches], self.model.device)
        paths_CT = padded([branch.path for branch in branches], self.model.device)
        logits_CTV = feed_chains(
            self.model,
            kv,
            list(range(len(branches))),
            [branch.base.length for branch in branches],
            tokens_BT[rows_C[:, None], paths_CT],
            [len(branch.path) for branch in branches],
        )
        for c, branch in enumerate(branches):
            self._copies[rows[branch.b]][branch.node] = _Copy(kv, c, branch.base.length + len(branch.path))
        lasts_C = to_device([len(branch.path) - 1 for branch in branches], self.model.device)
        nodes_C = to_device([branch.path[-1] for branch in branches], self.model.device)
        logits_BTV = logits_CTV.new_zeros(*tokens_BT.shape, logits_CTV.shape[-1])
        logits_BTV[rows_C, nodes_C] = logits_CTV[torch.arange(len(branches), device=self.model.device), lasts_C]
        return logits_BTV

    def commit(self, rows: list[int], kept: list[Kept]) -> None:
        """Copy back the columns that the last kept node's copy has gained; drop all copies."""
        with self.clock.stage("align"):
            self._contents.require(rows, "commit")
            for row, keep in zip(rows, kept, strict=True):
                stay, nodes = self._contents[row].keep(keep)
                if nodes:
                    copy = self._copies[row][nodes[-1]]
                    self._home.kv.reserve(copy.length)
                    self._home.kv.width = max(self._home.kv.width, copy.length)
                    home_NHSD = self._home.kv.data_NBHSD[:, self._home.slot[row]]
                    home_NHSD[:, :, stay : copy.length] = copy.kv.data_NBHSD[:, copy.index, :, stay : copy.length]
                self._copies[row].clear()

    def length(self, row: int) -> int:
        return self._contents[row].length

    def content(self, row: int) -> Tensor:
        return self._home.kv.data_NBHSD[:, self._home.slot[row], :, : self._contents[row].length].clone()

    def _branches(self, b: int, row: int, count: int, parents: list[int] | None) -> list[_Branch]:
        """The new nodes of a row, each with the longest copy it can extend."""
        content = self._contents[row]
        first = len(content.parents)
        content.feed(count, parents)
        home = _Copy(self._home.kv, self._home.slot[row], content.length)
        branches = []
        for node in range(first, first + count):
            path = content.ancestors(node)[::-1]
            earlier = [ancestor for ancestor in path if ancestor < first]
            base = self._copies[row][earlier[-1]] if earlier else home
            branches.append(_Branch(b, node, base, [ancestor - first for ancestor in path[len(earlier) :]]))
        return branches

    def _expand(self, bases: list[_Copy], room: int) -> KVStorage:
        """A storage whose row c is a copy of ``bases[c]``, and has room for more columns."""
        columns = max(base.length for base in bases)
        kv = self.model.empty_storage(len(bases), columns + room)
        kv.width = columns
        for c, base in enumerate(bases):
            kv.data_NBHSD[:, c, :, : base.length] = base.kv.data_NBHSD[:, base.index, :, : base.length]
        return kv
