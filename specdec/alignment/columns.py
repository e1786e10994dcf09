"""A rectangular cache whose rows may have their tokens in any columns: appended together, with holes between them."""

from __future__ import annotations

from bisect import bisect_right

import torch
from torch import Tensor

from specdec.alignment.content import Contents
from specdec.alignment.layout import causal, padded
from specdec.errors import ContractError
from specdec.models.causal_lm import CausalLM
from specdec.models.kv import GROWTH_COLUMNS, KVStorage

GONE = -1
"""Stands in the batch for a released row, whose number may be admitted again."""


class ColumnBatch:
    """The rows of the last forward, right-padded when they came together; all others rest as ragged KV of their own.

    ``columns[row]`` names the columns of a row's cached tokens, in order; ``nodes[row]`` those of the nodes fed since
    its last commit. Everything else below ``kv.width`` is a hole; ``padding[row]`` counts those that a row got when
    the batch came together because it was shorter than the longest.
    """

    def __init__(self, model: CausalLM, contents: Contents) -> None:
        self.model = model
        self.contents = contents
        self.rows: list[int] = []
        self.kv: KVStorage = model.empty_storage(0, 0)
        self.columns: dict[int, list[int]] = {}
        self.nodes: dict[int, list[int]] = {}
        self.padding: dict[int, int] = {}
        self.pool: dict[int, Tensor] = {}  # ragged KV (N, H, length, D) of rows outside the batch

    @property
    def living(self) -> list[int]:
        """Rows of the batch that are still admitted."""
        return [row for row in self.rows if row in self.contents]

    def prefill(self, rows: list[int], contents: list[list[int]]) -> None:
        """Make new rows the batch and feed their tokens, right-padded."""
        self.choose(rows)
        width = max(map(len, contents), default=0)
        if width:
            mask_BTS = causal(width, self.model.device).expand(len(rows), -1, -1)
            positions_BT = torch.arange(width, device=self.model.device).expand(len(rows), -1)
            tokens_BT = padded(contents, self.model.device)
            self.model.forward(tokens_BT, positions_BT, mask_BTS, self.kv.append(width), num_logits=1)
        for row, content in zip(rows, contents, strict=True):
            self.columns[row], self.padding[row] = list(range(len(content))), width - len(content)

    def forget(self, rows: list[int]) -> None:
        """Drop what released rows hold outside the batch; their columns in it go at the next change of rows."""
        for row in rows:
            self.pool.pop(row, None)
        self.rows = [GONE if row in rows else row for row in self.rows]

    def choose(self, rows: list[int]) -> None:
        """Make ``rows`` the batch. Rows that only leave take nothing with them: the others' columns stay."""
        if rows == self.rows:
            return
        if rows and set(rows) <= set(self.rows):
            self._narrow(rows)
        else:
            self._rest(self.living)
            self._gather(rows)

    def append(self, rows: list[int], counts: list[int], lead: int = 0) -> None:
        """Note the columns of each row's next nodes, ``lead`` columns behind those in use."""
        start = self.kv.width + lead
        for row, count in zip(rows, counts, strict=True):
            self.nodes[row].extend(range(start, start + count))

    def committed(self, rows: list[int], num_columns: int) -> Tensor:
        """(B, S) bool: the columns of each row's cached tokens."""
        real_BS = torch.zeros(len(rows), num_columns, dtype=torch.bool)
        for b, row in enumerate(rows):
            prefix = unbroken(self.columns[row])
            real_BS[b, :prefix] = True
            real_BS[b, self.columns[row][prefix:]] = True
        return real_BS.to(self.model.device)

    def keep(self, row: int, stay: int, nodes: list[int]) -> None:
        """Commit a row: its first ``stay`` cached tokens and the kept nodes; the rest becomes holes."""
        if row in self.pool:
            self.pool[row] = self.pool[row][:, :, :stay]
        else:
            self.columns[row] = self.columns[row][:stay] + [self.nodes[row][node] for node in nodes]
            self.nodes[row] = []

    def cached(self, row: int) -> Tensor:
        """A copy of a row's cached KV, (N, H, cached tokens, D)."""
        if row in self.pool:
            return self.pool[row].clone()
        data_NHSD = self.kv.data_NBHSD[:, self.rows.index(row)]
        prefix = unbroken(self.columns[row])
        rest = torch.tensor(self.columns[row][prefix:], dtype=torch.long, device=self.model.device)
        return torch.cat([data_NHSD[:, :, :prefix], data_NHSD[:, :, rest]], dim=2)

    def compact(self) -> None:
        """Move what stands behind a living row's first hole to the left, over its holes."""
        width = 0
        for b, row in enumerate(self.rows):
            if row not in self.contents:
                continue
            old = self.columns[row] + self.nodes[row]
            count, cached = len(old), len(self.columns[row])
            prefix = unbroken(old)
            if prefix < count:
                data_NHSD = self.kv.data_NBHSD[:, b]
                rest = torch.tensor(old[prefix:], device=self.model.device)
                data_NHSD[:, :, prefix:count] = data_NHSD[:, :, rest]
            self.columns[row], self.nodes[row] = list(range(cached)), list(range(cached, count))
            width = max(width, count)
        self.kv.width = width
        self.padding = {row: width - len(self.columns[row]) - len(self.nodes[row]) for row in self.living}

    def _narrow(self, rows: list[int]) -> None:
        """Keep only ``rows`` of the batch, column for column."""
        self._rest([row for row in self.living if row not in rows])
        index = torch.tensor([self.rows.index(row) for row in rows], device=self.model.device)
        self.kv = KVStorage(self.kv.data_NBHSD[:, index], self.kv.width, self.kv.shapes)
        self.rows = list(rows)

    def _rest(self, rows: list[int]) -> None:
        """Take rows out of the batch into the pool, without their holes."""
        for row in rows:
            if self.nodes[row]:
                raise ContractError(f"row {row} holds {len(self.nodes[row])} uncommitted tokens: commit first")
            self.pool[row] = self.cached(row)

    def _gather(self, rows: list[int]) -> None:
        """Make rows of the pool the batch, right-padded."""
        pooled = {row: self.pool.pop(row) for row in rows if row in self.pool}
        width = max((kv.shape[2] for kv in pooled.values()), default=0)
        self.kv = self.model.empty_storage(len(rows), width + GROWTH_COLUMNS)
        self.kv.width = width
        for b, row in enumerate(rows):
            if row in pooled:
                self.kv.data_NBHSD[:, b, :, : pooled[row].shape[2]] = pooled[row]
        self.rows = list(rows)
        self.columns = {row: list(range(pooled[row].shape[2] if row in pooled else 0)) for row in rows}
        self.nodes = {row: [] for row in rows}
        self.padding = {row: width - len(self.columns[row]) for row in rows}


def unbroken(columns: list[int]) -> int:
    """How many of a row's columns, which are in order, stand where they would without any hole before them."""
    return bisect_right(range(len(columns)), 0, key=lambda i: columns[i] - i)
