"""Windowed: a draft's cache of bounded size, which keeps a row's first tokens (the sinks) and its last ones.

Idea: a query sees the row's first ``sinks`` tokens and its last ``window``, its own included; what no later query will
see is dropped. Column j holds token j while j < sinks, and token j + dropped after them, so all is arithmetic on two
numbers per row. Positions stay those of the tokens (not of the columns, as in StreamingLLM): keys are cached after
their rotation, so other positions would mean computing them again, and distances within the window are right either
way. A row can therefore be as long as the draft's own context, not longer.
What a layer sees follows from the row's tokens alone, so a draft is the same whenever its row was admitted.
Cost: columns move to the left once per ``ROOM`` tokens of a row. Masks and positions are explicit.
Source: Xiao et al. 2023, arXiv 2309.17453 (attention sinks); as a draft's cache in MagicDec, arXiv 2408.11049.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from specdec.alignment.base import Admitted, Alignment, Kept
from specdec.alignment.content import Contents
from specdec.alignment.layout import attention_mask, consecutive, padded, real_tokens
from specdec.alignment.slots import SlotStorage
from specdec.core.clock import Clock
from specdec.core.transfer import to_device
from specdec.errors import ContractError
from specdec.models.causal_lm import CausalLM

ROOM = 128  # tokens that a row adds before its columns are moved, and that are read at once, at most
MARGIN = 8  # tokens kept before the window, because a commit may cut back


class WindowedAlignment(Alignment):
    """Not a strategy for targets: their tokens see all tokens before them. See the module's text."""

    window: ClassVar[int]
    sinks: ClassVar[int]
    reads_at_once = ROOM

    def __init__(self, model: CausalLM, clock: Clock) -> None:
        self.model = model
        self.clock = clock
        self._contents = Contents()
        self._slots = SlotStorage(model)
        self._dropped: dict[int, int] = {}  # tokens after the sinks that are gone

    @classmethod
    def kept_columns(cls, rows: Admitted) -> float:
        """Sinks, window and room, or all of the row where that is less."""
        return rows.in_flight * min(rows.columns, cls.sinks + cls.window + MARGIN + 2 * ROOM + rows.num_fed)

    @classmethod
    def moved_columns(cls, rows: Admitted) -> float:
        """The old storage while a larger one is filled."""
        return cls.kept_columns(rows)

    def expect(self, num_rows: int) -> None:
        with self.clock.stage("align"):
            self._slots.reserve(len(self._slots.slot) + num_rows)

    def admit(self, rows: list[int], contents: list[list[int]]) -> None:
        self._contents.admit(rows)
        self._slots.take(rows)
        self._dropped.update(dict.fromkeys(rows, 0))
        lengths = [len(content) for content in contents]
        tokens_BT = padded(contents, self.model.device)
        for start in range(0, max(lengths, default=0), ROOM):
            part = [b for b, length in enumerate(lengths) if length > start]
            counts = [min(lengths[b] - start, ROOM) for b in part]
            fed = [rows[b] for b in part]
            self._feed(fed, tokens_BT[part, start : start + max(counts)], counts, None, num_logits=1)
            self.commit(fed, [start + count for count in counts])

    def release(self, rows: list[int]) -> None:
        self._contents.release(rows)
        self._slots.free(rows)
        for row in rows:
            del self._dropped[row]

    def forward(
        self,
        rows: list[int],
        tokens_BT: Tensor,
        num_tokens: list[int] | None = None,
        parents: list[list[int]] | None = None,
    ) -> Tensor:
        self._contents.require(rows, "forward")
        return self._feed(rows, tokens_BT, num_tokens or [tokens_BT.shape[1]] * len(rows), parents)

    def commit(self, rows: list[int], kept: list[Kept]) -> None:
        """Move the kept nodes to their places, and drop what no later query sees."""
        with self.clock.stage("align"):
            self._contents.require(rows, "commit")
            for row, keep in zip(rows, kept, strict=True):
                stay, nodes = self._contents[row].keep(keep)
                start = self._column(row, stay)
                if nodes and nodes[-1] >= len(nodes):  # nodes ascend, so only then is one left out
                    self._move(row, start, to_device(nodes, self.model.device) + start)
                self._drop(row)

    def length(self, row: int) -> int:
        return self._contents[row].length

    def content(self, row: int) -> Tensor:
        """What is left of a row's keys and values: (N, H, tokens, D)."""
        stop = self._contents[row].length - self._dropped[row]
        return self._slots.kv.data_NBHSD[:, self._slots.slot[row], :, :stop].clone()

    def _column(self, row: int, token: int) -> int:
        """The column of a token after the sinks, or of the next one."""
        if self._dropped[row] and token - self._dropped[row] < self.sinks + self.window - 1:
            raise ContractError(f"row {row} is cut back to {token} tokens, further than its window still reaches")
        return token - self._dropped[row]

    def _move(self, row: int, start: int, columns: Tensor) -> None:
        data_NHSD = self._slots.kv.data_NBHSD[:, self._slots.slot[row]]
        data_NHSD[:, :, start : start + len(columns)] = data_NHSD[:, :, columns]

    def _drop(self, row: int) -> None:
        kept, first = self.window + MARGIN, self.sinks
        stop = self._contents[row].length - self._dropped[row]
        if stop - first > kept + ROOM:
            self._move(row, first, torch.arange(stop - kept, stop, device=self.model.device))
            self._dropped[row] += stop - first - kept

    def _feed(
        self,
        rows: list[int],
        tokens_BT: Tensor,
        counts: list[int],
        parents: list[list[int]] | None,
        num_logits: int = 0,
    ) -> Tensor:
        contents, num_new = [self._contents[row] for row in rows], tokens_BT.shape[1]
        ends = [self._column(row, content.length) for row, content in zip(rows, contents, strict=True)]
        starts = [end + len(content.parents) for end, content in zip(ends, contents, strict=True)]
        positions = self._contents.feed(rows, counts, parents)
        positions_BT = padded(positions, self.model.device, num_new)
        writer = self._slots.kv.scatter([self._slots.slot[row] for row in rows], starts, num_new)
        columns = [list(range(end, end + len(c.parents))) for end, c in zip(ends, contents, strict=True)]
        mask_BTS = attention_mask(
            committed_BS=consecutive([0] * len(rows), ends, max(starts) + num_new, self.model.device),
            contents=contents,
            node_columns=columns,
            num_tokens=counts,
            num_new=num_new,
        )
        mask_BTS &= self._within(rows, positions_BT, mask_BTS.shape[2], columns)
        real_BT = real_tokens(counts, num_new, self.model.device)
        num_positions = max((max(part, default=0) for part in positions), default=0) + 1
        return self.model.forward(
            tokens_BT, positions_BT, mask_BTS, writer, num_logits, real_BT, num_positions=num_positions
        )

    def _within(self, rows: list[int], positions_BT: Tensor, num_columns: int, columns: list[list[int]]) -> Tensor:
        """(B, T, S) bool: whether a column holds a sink or one of the last tokens before a query, or is its own."""
        columns_S = torch.arange(num_columns, device=self.model.device)
        dropped_B1 = to_device([self._dropped[row] for row in rows], self.model.device)[:, None]
        places_BS = torch.where(columns_S < self.sinks, columns_S, columns_S + dropped_B1)
        for b, row in enumerate(rows):  # in a tree a node's column is not its position
            content = self._contents[row]
            if not content.is_chain():
                depths = to_device(content.depths, self.model.device)
                places_BS[b, columns[b]] = content.length + depths
        recent_BTS = places_BS[:, None] > positions_BT[..., None] - self.window
        return recent_BTS | (places_BS < self.sinks)[:, None]


def windowed(window: int, sinks: int) -> type[WindowedAlignment]:
    """The alignment with these sizes."""
    return type("Windowed", (WindowedAlignment,), {"window": window, "sinks": sinks})
