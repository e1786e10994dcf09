"""A sparse view of rows' caches: in such forwards every query sees its row's first tokens and its last ones only.

The view changes a call, not the storage, and in any layout: columns that a query sees are in order of position
(masks.py), so a column's rank among them is its token's place in the row. Executions that read only columns that a mask
shows are given the mask; for the others a writer picks the columns of the view, layer by layer, so that attention costs
what these cost.
Source: Sadhukhan et al. 2024, arXiv 2408.11049 (MagicDec: drafts from the target with a sparse cache).
Shape letters: B rows, T tokens, S columns, W columns of the view, H key heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specdec.models.execution.base import Call, Given
from specdec.models.kv import KVWriter, Place
from specdec.models.masks import within_window


@dataclass(frozen=True, slots=True)
class SparseView:
    """The first ``sinks`` tokens and the last ``window``, a query's own included."""

    window: int
    sinks: int
    nodes: int  # tokens of a row that are fed between two commits, at most

    def seen(self, mask_BTS: Tensor) -> Tensor:
        """Restrict masks (B, T, S) to the view."""
        first_BTS = mask_BTS.cumsum(-1, dtype=torch.int32) <= self.sinks
        return mask_BTS & first_BTS | within_window(mask_BTS, self.window)

    def of(self, call: Call, picks_columns: bool) -> Call:
        """The call with this view; ``picks_columns`` is whether its execution reads only what a mask shows."""
        mask_BTS = self.seen(call.mask())
        _, T, S = mask_BTS.shape
        layout, most = Given(call.positions(), mask_BTS, call.num_positions), self.sinks + self.window + self.nodes + T
        if picks_columns or call.writer.shared is not None or most >= S:
            return replace(call, layout=layout)
        # Without waiting for the device to count them: those that some query sees come first, in their order.
        columns_BW = mask_BTS.any(1).to(torch.int8).argsort(dim=-1, descending=True, stable=True)[:, :most]
        picked_BTW = mask_BTS.gather(2, columns_BW[:, None].expand(-1, T, -1))
        return replace(call, layout=replace(layout, mask_BTS=picked_BTW), writer=_Picked(call.writer, columns_BW))


@dataclass(frozen=True, slots=True)
class _Picked:
    """A writer whose queries read some columns of their row, as a copy that lasts for one layer."""

    writer: KVWriter
    columns_BW: Tensor

    @property
    def place(self) -> Place:
        return self.writer.place

    @property
    def shared(self) -> None:
        return None

    @property
    def num_columns(self) -> int:
        return self.columns_BW.shape[1]

    def write(self, index: int, states_BHTD: Tensor) -> Tensor:
        own_BHSD = self.writer.write(index, states_BHTD)
        rows_B1 = torch.arange(len(own_BHSD), device=own_BHSD.device)[:, None]
        return own_BHSD.transpose(1, 2)[rows_B1, self.columns_BW].transpose(1, 2)

    def written(self) -> None:
        self.writer.written()
