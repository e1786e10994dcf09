"""A rectangular cache in which a row's tokens may be in any columns, with holes between them."""

from __future__ import annotations

from bisect import bisect_right

import torch
from torch import Tensor

from specdec.alignment.content import Contents
from specdec.alignment.layout import attention_mask, causal, padded, real_tokens
from specdec.core.transfer import to_device
from specdec.errors import ContractError
from specdec.models.causal_lm import CausalLM
from specdec.models.kv import GROWTH_COLUMNS, KVStorage

RELEASED = -1
"""Takes the place of a released row in the batch, as its number may be admitted again."""


class ColumnBatch:
    """The rows of the last forward as a batch, right-padded when it was built; other rows are in a pool of ragged KV.

    ``columns[row]`` lists the columns of a row's cached tokens, in order; ``nodes[row]`` those of the nodes fed since
    its last commit. All other columns below ``kv.width`` are holes; ``padding[row]`` counts the holes from padding the
    row to the longest when the batch was built.
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
        """Admitted rows of the batch."""
        return [row for row in self.rows if row in self.contents]

    def admit(self, rows: list[int], contents: list[list[int]]) -> None:
        """Make new rows the batch and feed their tokens, right-padded."""
        self.contents.admit(rows)
        self.choose(rows)
        width = max(map(len, contents), default=0)
        if width:
            mask_BTS = causal(width, self.model.device).expand(len(rows), -1, -1)
            positions_BT = torch.arange(width, device=self.model.device).expand(len(rows), -1)
            tokens_BT = padded(contents, self.model.device)
            real_BT = real_tokens([len(content) for content in contents], width, self.model.device)
            self.model.forward(tokens_BT, positions_BT, mask_BTS, self.kv.append(width), 1, real_BT)
        for row, content in zip(rows, contents, strict=True):
            self.columns[row], self.padding[row] = list(range(len(content))), width - len(content)
            self.contents[row].length = len(content)

    def release(self, rows: list[int]) -> None:
        """Drop rows and their pooled KV; their columns in the batch go at the next change of rows."""
        self.contents.release(rows)
        for row in rows:
            self.pool.pop(row, None)
        self.rows = [RELEASED if row in rows else row for row in self.rows]

    def choose(self, rows: list[int]) -> None:
        """Make ``rows`` the batch. If rows only leave, the columns of the others stay."""
        if rows == self.rows:
            return
        if rows and set(rows) <= set(self.rows):
            self._narrow(rows)
        else:
            self._rest(self.living)
            self._gather(rows)

    def place(self, rows: list[int], counts: list[int], num_new: int, lead: int = 0) -> Tensor:
        """Assign columns to the nodes just fed, ``lead`` columns after those in use; returns their mask (B, T, S)."""
        start = self.kv.width + lead
        for row, count in zip(rows, counts, strict=True):
            self.nodes[row].extend(range(start, start + count))
        return attention_mask(
            committed_BS=self.committed(rows, start + num_new),
            contents=[self.contents[row] for row in rows],
            node_columns=[self.nodes[row] for row in rows],
            num_tokens=counts,
            num_new=num_new,
        )

    def committed(self, rows: list[int], num_columns: int) -> Tensor:
        """(B, S) bool: the columns of each row's cached tokens."""
        real_BS = torch.zeros(len(rows), num_columns, dtype=torch.bool)
        for b, row in enumerate(rows):
            prefix = unbroken(self.columns[row])
            real_BS[b, :prefix] = True
            real_BS[b, self.columns[row][prefix:]] = True
        return to_device(real_BS, self.model.device)

    def keep(self, row: int, stay: int, nodes: list[int]) -> None:
        """Commit a row's first ``stay`` cached tokens and the kept nodes; the rest becomes holes."""
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
        rest = to_device(self.columns[row][prefix:], self.model.device, torch.long)
        return torch.cat([data_NHSD[:, :, :prefix], data_NHSD[:, :, rest]], dim=2)

    def compact(self) -> None:
        """Move the tokens after each row's first hole to the left, so that no row has holes between its tokens."""
        width = 0
        for b, row in enumerate(self.rows):
            if row not in self.contents:
                continue
            old = self.columns[row] + self.nodes[row]
            count, cached = len(old), len(self.columns[row])
            prefix = unbroken(old)
            if prefix < count:
                data_NHSD = self.kv.data_NBHSD[:, b]
                rest = to_device(old[prefix:], self.model.device)
                data_NHSD[:, :, prefix:count] = data_NHSD[:, :, rest]
            self.columns[row], self.nodes[row] = list(range(cached)), list(range(cached, count))
            width = max(width, count)
        self.kv.width = width
        self.padding = {row: width - len(self.columns[row]) - len(self.nodes[row]) for row in self.living}

    def _narrow(self, rows: list[int]) -> None:
        """Keep only ``rows`` of the batch, column for column."""
        self._rest([row for row in self.living if row not in rows])
        index = to_device([self.rows.index(row) for row in rows], self.model.device)
        self.kv = KVStorage(self.kv.data_NBHSD[:, index], self.kv.width, self.kv.shapes)
        self.rows = list(rows)

    def _rest(self, rows: list[int]) -> None:
        """Move rows from the batch to the pool, without their holes."""
        for row in rows:
            if self.nodes[row]:
                raise ContractError(f"row {row} holds {len(self.nodes[row])} uncommitted tokens: commit first")
            self.pool[row] = self.cached(row)

    def _gather(self, rows: list[int]) -> None:
        """Build the batch from rows of the pool, right-padded."""
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
    """How many of a row's sorted columns come before its first hole."""
    return bisect_right(range(len(columns)), 0, key=lambda i: columns[i] - i)
