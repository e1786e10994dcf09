"""KV storage in which every row has its own slot and writes to its own columns."""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.alignment.layout import real_tokens
from specdec.models.causal_lm import CausalLM
from specdec.models.kv import GROWTH_COLUMNS, KVStorage
from specdec.models.shared import SharedColumns
from specdec.models.states import StateFeed

OPERATIONS_PER_BYTE = {"cpu": 6, "cuda": 200}
"""Operations of a matrix product that take as long as moving one byte of the cache (on a CPU in bfloat16 or float16,
which many CPUs emulate: 1). Constants rather than measurements, so that a run makes the same forwards everywhere."""


class SlotStorage:
    """Rows and their slots in a KVStorage that doubles its number of slots and adds columns in steps."""

    def __init__(self, model: CausalLM) -> None:
        self.model = model
        self.slot: dict[int, int] = {}
        self.kv: KVStorage = model.empty_storage(0, 0)

    def take(self, rows: list[int]) -> None:
        """Give each new row the lowest free slot."""
        taken = set(self.slot.values())
        free = [slot for slot in range(len(taken) + len(rows)) if slot not in taken]
        self.slot.update(zip(rows, free[: len(rows)], strict=True))
        self.reserve(max(self.slot.values(), default=-1) + 1)

    def free(self, rows: list[int]) -> None:
        """Free the rows' slots for the next new rows."""
        for row in rows:
            del self.slot[row]

    def has_gaps(self) -> bool:
        """Whether free slots lie below those in use."""
        return max(self.slot.values(), default=-1) >= len(self.slot)

    def close_up(self) -> None:
        """Move rows from the highest slots into free ones, so that the slots in use are consecutive."""
        count = len(self.slot)
        taken = set(self.slot.values())
        free = [slot for slot in range(count) if slot not in taken]
        movers = [row for row, slot in self.slot.items() if slot >= count]
        for row, slot in zip(movers, free, strict=True):
            data_NBHSD, width = self.kv.data_NBHSD, self.kv.width
            data_NBHSD[:, slot, :, :width] = data_NBHSD[:, self.slot[row], :, :width]
            self.slot[row] = slot

    def reserve(self, count: int) -> None:
        """Make room for ``count`` slots."""
        have = self.kv.num_rows
        if count > have:
            columns = max(self.kv.data_NBHSD.shape[3], GROWTH_COLUMNS)
            grown = self.model.empty_storage(max(count, 2 * have), columns)
            grown.data_NBHSD[:, :have, :, : self.kv.width] = self.kv.data_NBHSD[..., : self.kv.width, :]
            grown.width = self.kv.width
            self.kv = grown


def idle_are_cheap(
    model: CausalLM, num_rows: int, num_idle: int, num_new: int, num_columns: int, num_columns_with_idle: int
) -> bool:
    """Whether feeding ``num_new`` padding tokens to each idle slot costs less than copying the rows' caches.

    Idle slots cost the matrix products of their tokens, and all rows then read as many columns as the longest slot has;
    a copy reads, writes and rereads the rows' columns. At most as many idle slots as rows are fed, so that the memory
    for logits and scores at most doubles (``Alignment.fed_rows``).
    """
    narrow = model.device.type == "cpu" and model.dtype not in (torch.float32, torch.float64)
    operations_per_byte = 1 if narrow else OPERATIONS_PER_BYTE.get(model.device.type, OPERATIONS_PER_BYTE["cpu"])
    products = num_idle * num_new * 2 * model.num_read_weights / operations_per_byte
    along = products + (num_rows + num_idle) * num_columns_with_idle * model.architecture.token_bytes
    return num_idle <= num_rows and along < 3 * num_rows * num_columns * model.architecture.token_bytes


def feed_chains(
    model: CausalLM,
    kv: KVStorage,
    slots: list[int],
    starts: list[int],
    tokens_BT: Tensor,
    counts: list[int],
    num_logits: int = 0,
    num_positions: int | None = None,
    shared: SharedColumns | None = None,
    states: StateFeed | None = None,
) -> Tensor:
    """Feed chains whose columns are positions: each token goes to the next column and sees all up to its own.

    A row may feed fewer than T tokens: the columns past them are masked, and overwritten by its next tokens.

    Args:
        slots: each row's slot in the storage. starts: column of each row's first token, after the row's content.
        tokens_BT: (B, T) ids; the first ``counts[b]`` of each row are fed, the others are padding.
        num_logits, num_positions, states: as in CausalLM.forward_chains.
        shared: what the rows read before their own columns; positions are counted from its first.
    """
    num_new = tokens_BT.shape[1]
    writer, real_BT = kv.scatter(slots, starts, num_new, shared), real_tokens(counts, num_new, model.device)
    return model.forward_chains(tokens_BT, writer, num_logits, real_BT, num_positions, states)
