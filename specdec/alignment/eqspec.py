"""EQSPEC, the reference: left padding, and unpad, append, repad after every round.

Idea: a batch is stored right-aligned, so that all rows end at the same column and row i starts after ``pad_i`` columns.
After a round each row drops its rejected tokens and the batch is right-aligned again: the KV content of row i moves by
the change of its padding (delta_i), which is 0 when all rows accepted equally many.
Cost: one copy of every row that moves, per round; a change of rows copies all rows of both batches.
Source: Zhang et al. 2025, arXiv 2510.22876, invariants I1 (pad + length = width) and I2 (contiguous positions).
Rows outside the current batch are kept in a pool as ragged KV, which EXSPEC regroups.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.alignment.base import Alignment, Kept
from specdec.alignment.content import Contents
from specdec.alignment.layout import attention_mask, causal, consecutive, padded, real_tokens
from specdec.core.clock import Clock
from specdec.core.transfer import to_device
from specdec.errors import ContractError
from specdec.models.causal_lm import CausalLM
from specdec.models.kv import GROWTH_COLUMNS, KVStorage


@dataclass(frozen=True, slots=True)
class _KeptColumns:
    """The kept columns of a row: ``stay`` consecutive committed ones from ``start``, then those of the kept nodes."""

    start: int
    stay: int
    nodes: list[int]

    def __len__(self) -> int:
        return self.stay + len(self.nodes)

    @property
    def consecutive(self) -> bool:
        stop = self.start + self.stay
        return all(column == stop + i for i, column in enumerate(self.nodes))

    def take(self, data_NHSD: Tensor) -> Tensor:
        """A copy of these columns."""
        if self.consecutive:
            return data_NHSD[:, :, self.start : self.start + len(self)].clone()
        columns = [*range(self.start, self.start + self.stay), *self.nodes]
        return data_NHSD[:, :, to_device(columns, data_NHSD.device)]


class EqspecAlignment(Alignment):
    """Left-padded batch; see the module's text."""

    feeds_given_only = True

    def __init__(self, model: CausalLM, clock: Clock) -> None:
        self.model = model
        self.clock = clock
        self._contents = Contents()
        self._pool: dict[int, Tensor] = {}  # ragged KV (N, H, length, D) of rows outside the batch
        self._batch: list[int] = []
        self._storage: KVStorage | None = None
        self._pads: dict[int, int] = {}
        self._nodes: dict[int, list[int]] = {}  # columns of the nodes fed since the last commit

    def admit(self, rows: list[int], contents: list[list[int]]) -> None:
        """Prefill new rows as a left-padded batch of their own."""
        with self.clock.stage("align"):
            self._disperse()  # first, as a new row may have the number of a released one that is still in the batch
            self._contents.admit(rows)
            self._gather(rows)
        width = max(map(len, contents), default=0)
        if width:
            pads = [width - len(content) for content in contents]
            tokens_BT = padded([[0] * pad + c for pad, c in zip(pads, contents, strict=True)], self.model.device)
            positions_BT = padded(
                [[0] * pad + list(range(len(c))) for pad, c in zip(pads, contents, strict=True)], self.model.device
            )
            real_BS = consecutive(pads, [len(content) for content in contents], width, self.model.device)
            # A padding query sees only itself: its output is not read, but must be finite.
            mask_BTS = causal(width, self.model.device) & real_BS[:, None]
            mask_BTS |= torch.eye(width, dtype=torch.bool, device=self.model.device)
            assert self._storage is not None
            self.model.forward(tokens_BT, positions_BT, mask_BTS, self._storage.append(width), 1, real_BS)
        for row, content in zip(rows, contents, strict=True):
            self._pads[row] = width - len(content)
            self._contents[row].length = len(content)

    def release(self, rows: list[int]) -> None:
        """Drop rows; the batch shrinks at the next forward."""
        self._contents.release(rows)
        for row in rows:
            self._pool.pop(row, None)

    def forward(
        self,
        rows: list[int],
        tokens_BT: Tensor,
        num_tokens: list[int] | None = None,
        parents: list[list[int]] | None = None,
    ) -> Tensor:
        """Feed tokens after the batch's last column; a different batch is gathered first."""
        self._contents.require(rows, "forward")
        if rows != self._batch:
            with self.clock.stage("align"):
                self._disperse()
                self._gather(rows)
        assert self._storage is not None
        num_new = tokens_BT.shape[1]
        counts = num_tokens or [num_new] * len(rows)
        start = self._storage.width
        positions = self._contents.feed(rows, counts, parents)
        for row, count in zip(rows, counts, strict=True):
            self._nodes[row].extend(range(start, start + count))
        contents, pads = [self._contents[row] for row in rows], [self._pads[row] for row in rows]
        lengths = [content.length for content in contents]
        mask_BTS = attention_mask(
            committed_BS=consecutive(pads, lengths, start + num_new, self.model.device),
            contents=contents,
            node_columns=[self._nodes[row] for row in rows],
            num_tokens=counts,
            num_new=num_new,
        )
        positions_BT = padded(positions, self.model.device, num_new)
        writer, real_BT = self._storage.append(num_new), real_tokens(counts, num_new, self.model.device)
        return self.model.forward(tokens_BT, positions_BT, mask_BTS, writer, real_BT=real_BT)

    def commit(self, rows: list[int], kept: list[Kept]) -> None:
        """Drop rejected tokens and right-align the batch again."""
        with self.clock.stage("align"):
            self._contents.require(rows, "commit")
            kept_columns: dict[int, _KeptColumns] = {}
            for row, keep in zip(rows, kept, strict=True):
                stay, nodes = self._contents[row].keep(keep)
                if row in self._pool:
                    self._pool[row] = self._pool[row][:, :, :stay]
                else:
                    kept_columns[row] = _KeptColumns(self._pads[row], stay, [self._nodes[row][node] for node in nodes])
                    self._nodes[row] = []
            self._realign(kept_columns)

    def length(self, row: int) -> int:
        return self._contents[row].length

    def content(self, row: int) -> Tensor:
        if row in self._pool:
            return self._pool[row].clone()
        assert self._storage is not None
        pad = self._pads[row]
        columns = slice(pad, pad + self._contents[row].length)
        return self._storage.data_NBHSD[:, self._batch.index(row), :, columns].clone()

    def _realign(self, kept_columns: dict[int, _KeptColumns]) -> None:
        """Move each row's kept columns so that all rows end together (unpad, append, repad)."""
        storage = self._storage
        if storage is None:
            return
        living = [row for row in self._batch if row in self._contents]
        for row in living:  # rows of the batch that this commit does not name keep everything
            if row not in kept_columns:
                kept_columns[row] = _KeptColumns(self._pads[row], self._contents[row].length, self._nodes[row])
        width = max((len(kept_columns[row]) for row in living), default=0)
        for b, row in enumerate(self._batch):
            if row not in self._contents:
                continue
            columns = kept_columns[row]
            pad = width - len(columns)
            if len(columns) and not (columns.consecutive and columns.start == pad):
                data_NHSD = storage.data_NBHSD[:, b]
                data_NHSD[:, :, pad:width] = columns.take(data_NHSD)
            self._pads[row] = pad
            self._nodes[row] = list(range(width - len(columns) + self._contents[row].length, width))
        storage.width = width

    def _disperse(self) -> None:
        """Unpad every admitted row of the batch into the pool."""
        for row in self._batch:
            if row in self._contents:
                if self._nodes[row]:
                    raise ContractError(f"row {row} holds {len(self._nodes[row])} uncommitted tokens: commit first")
                self._pool[row] = self.content(row)
        self._batch, self._storage = [], None
        self._pads.clear()
        self._nodes.clear()

    def _gather(self, rows: list[int]) -> None:
        """Build the batch of ``rows``: concatenated if their lengths are equal, repadded otherwise."""
        lengths = [self._contents[row].length for row in rows]
        width = max(lengths, default=0)
        storage = self.model.empty_storage(len(rows), width + GROWTH_COLUMNS)
        storage.width = width
        if width and min(lengths) == width:
            stacked = torch.stack([self._pool[row] for row in rows], dim=1)
            storage.data_NBHSD[..., :width, :] = stacked
        else:
            for b, row in enumerate(rows):
                if lengths[b]:
                    storage.data_NBHSD[:, b, :, width - lengths[b] : width] = self._pool[row]
        for row, length in zip(rows, lengths, strict=True):
            self._pool.pop(row, None)
            self._pads[row] = width - length
            self._nodes[row] = []
        self._batch, self._storage = list(rows), storage
