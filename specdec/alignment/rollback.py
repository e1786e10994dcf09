"""Rollback: after every round the whole batch is cut back to its shortest acceptance.

Idea: a rectangular cache can drop columns only for all rows at once, so it is cut to the row that kept least. The
tokens that another row kept past the cut are missing: their KV is gone, and the next forward feeds them again before
its new tokens, right-aligned, so that all rows continue at the same column. Rows that miss fewer tokens have holes
there. A row never misses more than one round fed, as long as commits do not cut deeper.
Cost: no copy of KV while the rows stay the same; instead every row's missing tokens are computed twice, and a batch
advances as slowly as the row that accepts least. A row that cuts far back makes all rows feed that part again.
Source: the simplest use of a cache's own crop() on a batch, which has one length for all rows; the published code of
DSD (Yan et al. 2024, arXiv 2402.01528) crops to the batch minimum like this.
"""

from __future__ import annotations

from bisect import bisect_left

import torch
from torch import Tensor

from specdec.alignment.base import Alignment, Kept
from specdec.alignment.columns import ColumnBatch
from specdec.alignment.content import Contents
from specdec.alignment.layout import padded
from specdec.core.clock import Clock
from specdec.models.causal_lm import CausalLM


class RollbackAlignment(Alignment):
    """Cut to the minimum, feed missing tokens again; see the module's text."""

    def __init__(self, model: CausalLM, clock: Clock) -> None:
        self.model = model
        self.clock = clock
        self._contents = Contents()
        self._batch = ColumnBatch(model, self._contents)
        self._tokens: dict[int, list[int]] = {}  # committed token ids, to feed again what was cut
        self._node_tokens: dict[int, list[int]] = {}
        self._feeds: list[tuple[list[int], Tensor, list[int]]] = []  # fed, but not yet copied from the device

    def admit(self, rows: list[int], contents: list[list[int]]) -> None:
        """Prefill new rows as a right-padded batch of their own."""
        self._batch.admit(rows, contents)
        for row, content in zip(rows, contents, strict=True):
            self._tokens[row], self._node_tokens[row] = list(content), []

    def release(self, rows: list[int]) -> None:
        """Drop rows; the batch shrinks at the next forward."""
        self._batch.release(rows)
        for row in rows:
            del self._tokens[row], self._node_tokens[row]

    def forward(
        self,
        rows: list[int],
        tokens_BT: Tensor,
        num_tokens: list[int] | None = None,
        parents: list[list[int]] | None = None,
    ) -> Tensor:
        """Feed each row's missing tokens, then its new ones."""
        self._contents.require(rows, "forward")
        with self.clock.stage("align"):
            self._batch.choose(rows)
        contents = [self._contents[row] for row in rows]
        num_new = tokens_BT.shape[1]
        counts = num_tokens or [num_new] * len(rows)
        self._feeds.append((list(rows), tokens_BT, counts))
        missing = [self._tokens[row][len(self._batch.columns[row]) :] for row in rows]
        lead = max(map(len, missing))
        positions = []
        for content, tokens, new in zip(contents, missing, self._contents.feed(rows, counts, parents), strict=True):
            again = range(content.length - len(tokens), content.length)
            positions.append([0] * (lead - len(tokens)) + [*again, *new])
        lead_mask_BTS = self._place(rows, missing, num_new)
        mask_BTS = self._batch.place(rows, counts, num_new, lead)
        lead_tokens_BT = padded([[0] * (lead - len(tokens)) + tokens for tokens in missing], self.model.device)
        return self.model.forward(
            torch.cat([lead_tokens_BT, tokens_BT], dim=1),
            padded(positions, self.model.device, lead + num_new),
            torch.cat([lead_mask_BTS, mask_BTS], dim=1),
            self._batch.kv.append(lead + num_new),
            num_logits=num_new,
        )

    def commit(self, rows: list[int], kept: list[Kept]) -> None:
        """Keep per row, then cut the batch to the first column that some row dropped."""
        with self.clock.stage("align"):
            self._contents.require(rows, "commit")
            self._copy_fed_ids()
            batch = self._batch
            cut = batch.kv.width
            for row, keep in zip(rows, kept, strict=True):
                stay, nodes = self._contents[row].keep(keep)
                if row not in batch.pool:
                    cut = min(cut, self._first_dropped(row, stay, nodes))
                batch.keep(row, stay, nodes)
                self._tokens[row] = self._tokens[row][:stay] + [self._node_tokens[row][node] for node in nodes]
                self._node_tokens[row] = []
            if any(batch.nodes[row] for row in batch.living):
                return  # rows that this commit does not name still hold nodes: their columns must stay
            for row in batch.living:
                columns = batch.columns[row]
                del columns[bisect_left(columns, cut) :]
            batch.kv.width = cut

    def length(self, row: int) -> int:
        return self._contents[row].length

    def content(self, row: int) -> Tensor:
        """The row's committed KV, (N, H, length, D); what is missing of it is computed on a copy, not in the batch."""
        kept_NHSD = self._batch.cached(row)
        num_cached, length = kept_NHSD.shape[2], self._contents[row].length
        kv = self.model.empty_storage(1, length)
        kv.data_NBHSD[:, 0, :, :num_cached] = kept_NHSD
        kv.width = num_cached
        if num_cached < length:
            positions = torch.arange(num_cached, length, device=self.model.device)
            mask_TS = torch.arange(length, device=self.model.device) <= positions[:, None]
            tokens_BT = padded([self._tokens[row][num_cached:]], self.model.device)
            self.model.forward(tokens_BT, positions[None], mask_TS[None], kv.append(length - num_cached), num_logits=1)
        return kv.data_NBHSD[:, 0, :, :length]

    def _place(self, rows: list[int], missing: list[list[int]], num_new: int) -> Tensor:
        """Assign columns to missing tokens, right-aligned; returns their mask (B, lead, S)."""
        width, lead = self._batch.kv.width, max(map(len, missing))
        for row, tokens in zip(rows, missing, strict=True):
            self._batch.columns[row].extend(range(width + lead - len(tokens), width + lead))
        columns_S = torch.arange(width + lead + num_new, device=self.model.device)
        queries_T = columns_S[width : width + lead]
        own_TS = columns_S == queries_T[:, None]  # padding sees only itself: its output is finite and not read
        committed_BS = self._batch.committed(rows, width + lead + num_new)
        return (committed_BS[:, None] & (columns_S <= queries_T[:, None])) | own_TS

    def _first_dropped(self, row: int, stay: int, nodes: list[int]) -> int:
        """The first column that the row does not keep; to be called before it is dropped."""
        columns, fed = self._batch.columns[row], self._batch.nodes[row]
        if stay < len(columns):
            return columns[stay]
        if nodes:
            return fed[nodes[-1]] + 1
        return fed[0] if fed else self._batch.kv.width

    def _copy_fed_ids(self) -> None:
        """Copy the ids of the tokens fed since the last commit, which the device has computed by now."""
        for rows, tokens_BT, counts in self._feeds:
            for row, tokens, count in zip(rows, tokens_BT.tolist(), counts, strict=True):
                if row in self._node_tokens:
                    self._node_tokens[row].extend(tokens[:count])
        self._feeds.clear()
