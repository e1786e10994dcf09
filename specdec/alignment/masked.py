"""Masked: rejected tokens stay in the cache as holes that the mask hides, until a compaction removes them.

Idea: all rows of a batch append to the same columns, and a commit is bookkeeping: rejected tokens become holes. A
position is the running count of a row's own tokens, never its column, so holes do not shift what comes after them.
When the holes that a compaction would remove exceed a share of the width, all rows are compacted.
Cost: attention over the holes, and one copy of every row per compaction: none per round. When rows join, both batches
are copied; when rows only leave, the batch is copied once.
Source: the layout of BSP's published code (Su et al. 2023, arXiv 2310.18813), with correct positions.
"""

from __future__ import annotations

from torch import Tensor

from specdec.alignment.base import Alignment, Kept
from specdec.alignment.columns import ColumnBatch
from specdec.alignment.content import Contents
from specdec.alignment.layout import padded, real_tokens
from specdec.core.clock import Clock
from specdec.errors import ConfigError
from specdec.models.causal_lm import CausalLM


class MaskedAlignment(Alignment):
    """Holes behind a mask; see the module's text."""

    feeds_given_only = True

    def __init__(self, model: CausalLM, clock: Clock, *, max_hole_share: float = 0.25) -> None:
        if not 0 <= max_hole_share <= 1:
            raise ConfigError(f"alignment.max_hole_share={max_hole_share}: it must be between 0 and 1")
        self.model = model
        self.clock = clock
        self.max_hole_share = max_hole_share
        self._contents = Contents()
        self._batch = ColumnBatch(model, self._contents)

    def admit(self, rows: list[int], contents: list[list[int]]) -> None:
        """Prefill new rows as a right-padded batch of their own."""
        self._batch.admit(rows, contents)

    def release(self, rows: list[int]) -> None:
        """Drop rows; the batch shrinks at the next forward."""
        self._batch.release(rows)

    def forward(
        self,
        rows: list[int],
        tokens_BT: Tensor,
        num_tokens: list[int] | None = None,
        parents: list[list[int]] | None = None,
    ) -> Tensor:
        """Append the tokens' columns to all rows; positions continue each row's own count."""
        self._contents.require(rows, "forward")
        with self.clock.stage("align"):
            self._batch.choose(rows)
        num_new = tokens_BT.shape[1]
        counts = num_tokens or [num_new] * len(rows)
        fed = self._contents.feed(rows, counts, parents)
        positions = [self._positions(row, numbers) for row, numbers in zip(rows, fed, strict=True)]
        mask_BTS = self._batch.place(rows, counts, num_new)
        positions_BT = padded(positions, self.model.device, num_new)
        writer, real_BT = self._batch.kv.append(num_new), real_tokens(counts, num_new, self.model.device)
        return self.model.forward(tokens_BT, positions_BT, mask_BTS, writer, real_BT=real_BT)

    def commit(self, rows: list[int], kept: list[Kept]) -> None:
        """Turn what is not kept into holes; compact the batch when there are too many."""
        with self.clock.stage("align"):
            self._contents.require(rows, "commit")
            for row, keep in zip(rows, kept, strict=True):
                stay, nodes = self._contents[row].keep(keep)
                self._batch.keep(row, stay, nodes)
            # Only the holes that a compaction would remove count: it cannot remove the padding of a shorter row.
            batch = self._batch
            needed = max((len(batch.columns[row]) + len(batch.nodes[row]) for row in batch.living), default=0)
            if batch.kv.width - needed > self.max_hole_share * batch.kv.width:
                batch.compact()

    def length(self, row: int) -> int:
        return self._contents[row].length

    def content(self, row: int) -> Tensor:
        return self._batch.cached(row)

    def _positions(self, row: int, counts: list[int]) -> list[int]:
        """Position ids of a row's new tokens, whose running counts are ``counts``."""
        return counts
