"""BSP as published: masked holes, but position ids that are cache columns. Known incorrect; kept to be measured.

Idea: prompts padded on the right, all rows append to the same columns, rejected tokens stay as holes behind the
mask: all of which is right. The published code passes no position ids, so that models with rotary positions fall back
to cache columns, and two kinds of holes shift a row's positions. Each is a switch:

- ``count_padding``: a row shorter than the longest prompt goes on from the longest one's end;
- ``count_holes``: what is rejected (and what only other rows fed) keeps its place in the count. Bites at batch 1 too.

With both off the positions are running counts and the result is exact.
Cost: none per round: nothing is moved, and the holes are never squeezed out. When rows join, the batch is padded
anew (published: batches never change).
Source: Su, Giannoula, Pekhimenko 2023, arXiv 2310.18813, and its port to Hugging Face caches; the published code is
right for OPT, which counts positions from the mask. The defect is described in arXiv 2510.22876.
"""

from __future__ import annotations

from torch import Tensor

from specdec.alignment.base import Alignment, Kept
from specdec.alignment.columns import ColumnBatch
from specdec.alignment.content import Contents
from specdec.alignment.layout import attention_mask, padded
from specdec.core.clock import Clock
from specdec.models.causal_lm import CausalLM


class BspAlignment(Alignment):
    """Columns as positions; see the module's text."""

    def __init__(self, model: CausalLM, clock: Clock, *, count_padding: bool = True, count_holes: bool = True) -> None:
        self.model = model
        self.clock = clock
        self.count_padding = count_padding
        self.count_holes = count_holes
        self._contents = Contents()
        self._batch = ColumnBatch(model, self._contents)

    def admit(self, rows: list[int], contents: list[list[int]]) -> None:
        """Prefill new rows as a right-padded batch of their own."""
        self._contents.admit(rows)
        self._batch.prefill(rows, contents)
        for row, content in zip(rows, contents, strict=True):
            self._contents[row].length = len(content)

    def release(self, rows: list[int]) -> None:
        """Forget rows; the columns of the others stay where they are."""
        self._contents.release(rows)
        self._batch.forget(rows)

    def forward(
        self,
        rows: list[int],
        tokens_BT: Tensor,
        num_tokens: list[int] | None = None,
        parents: list[list[int]] | None = None,
    ) -> Tensor:
        """Append the tokens' columns to all rows; positions as the switches say."""
        self._contents.require(rows, "forward")
        with self.clock.stage("align"):
            self._batch.choose(rows)
        num_new = tokens_BT.shape[1]
        counts = num_tokens or [num_new] * len(rows)
        positions = []
        for b, row in enumerate(rows):
            true = self._contents[row].feed(counts[b], parents[b] if parents else None)
            fed = [self._position(row, t, position) for t, position in enumerate(true)]
            positions.append(fed + [0] * (num_new - len(fed)))
        self._batch.append(rows, counts)
        mask_BTS = attention_mask(
            committed_BS=self._batch.committed(rows, self._batch.kv.width + num_new),
            contents=[self._contents[row] for row in rows],
            node_columns=[self._batch.nodes[row] for row in rows],
            num_tokens=counts,
            num_new=num_new,
        )
        positions_BT = padded(positions, self.model.device)
        return self.model.forward(tokens_BT, positions_BT, mask_BTS, self._batch.kv.append(num_new))

    def commit(self, rows: list[int], kept: list[Kept]) -> None:
        """What is not kept becomes holes, for good."""
        with self.clock.stage("align"):
            self._contents.require(rows, "commit")
            for row, keep in zip(rows, kept, strict=True):
                stay, nodes = self._contents[row].keep(keep)
                self._batch.keep(row, stay, nodes)

    def length(self, row: int) -> int:
        """Committed tokens of a row."""
        return self._contents[row].length

    def content(self, row: int) -> Tensor:
        """A copy of a row's committed KV, (N, H, length, D), as computed at the wrong positions."""
        return self._batch.cached(row)

    def _position(self, row: int, t: int, true: int) -> int:
        """The position of the t-th new token: its running count, plus what the switches count besides."""
        padding = self._batch.padding[row]
        holes = self._batch.kv.width + t - true - padding
        position = true + self.count_padding * padding + self.count_holes * holes
        return min(position, self.model.context_length - 1)
