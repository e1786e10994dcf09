"""What LongSpec keeps of each row: keys and values of the target's last layer, and its own of a window of tokens.

Own keys and values: token p's in column p modulo the window, as long as it is committed and not the last one; behind
these columns those of the nodes of the round, the last token first. They are the same for any history of a row, as they
follow from tokens and positions alone.
Shape letters: B rows, T new tokens, N nodes fed, K key heads, E head size, W window, P own columns, S the target's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specdec.alignment.layout import ancestry
from specdec.alignment.slots import SlotStorage
from specdec.core.transfer import to_device
from specdec.models.causal_lm import CausalLM
from specdec.models.kv import KVWriter, Place

KeysAndValues = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class BothCaches:
    """The writer of a forward: it stores own keys and values; the target's are read, in the columns after them."""

    own: KVWriter
    target: KeysAndValues  # (B, K, S, E) each

    @property
    def place(self) -> Place:
        """As in KVWriter."""
        return self.own.place

    @property
    def shared(self) -> None:
        """None: rows share no columns."""

    @property
    def num_columns(self) -> int:
        """As in KVWriter."""
        return self.own.num_columns + self.target[0].shape[2]

    def write(self, index: int, states_BHTD: Tensor) -> Tensor:
        """As in KVWriter, of the own ones."""
        return self.own.write(index, states_BHTD)

    def written(self) -> None:
        """Nothing to do."""


class LongSpecCache:
    """Slots of rows in two storages that give them the same slots."""

    def __init__(self, model: CausalLM, window: int) -> None:
        self.window = window
        self._device = model.device
        self._target, self._own = SlotStorage(model), SlotStorage(model)
        self._read: dict[int, int] = {}  # tokens of each row whose target's keys are here
        self._settled: dict[int, int] = {}  # tokens of each row whose own keys are, or were, in its window

    def __len__(self) -> int:
        return len(self._read)

    def read_up_to(self, row: int) -> int:
        """How many of a row's tokens have their target's keys and values here."""
        return self._read[row]

    def settled_up_to(self, row: int) -> int:
        """How many of a row's tokens have been settled."""
        return self._settled[row]

    def admit(self, rows: list[int]) -> None:
        """Take new rows in, with nothing."""
        for storage in (self._target, self._own):
            storage.take(rows)
        self._own.kv.reserve(self.window)
        self._own.kv.width = max(self._own.kv.width, self.window)
        self._read.update(dict.fromkeys(rows, 0))
        self._settled.update(dict.fromkeys(rows, 0))

    def release(self, rows: list[int]) -> None:
        """Drop rows."""
        for storage in (self._target, self._own):
            storage.free(rows)
        for row in rows:
            del self._read[row], self._settled[row]

    def close_up(self) -> None:
        """Move rows into free slots below them, so that all rows together are read without a copy."""
        for storage in (self._target, self._own):
            if storage.has_gaps():
                storage.close_up()

    def add(self, rows: list[int], counts: list[int], keys_BKTE: Tensor, values_BKTE: Tensor) -> None:
        """Store the target's keys and values of each row's next ``counts[b]`` tokens."""
        starts = [self._read[row] for row in rows]
        writer = self._target.kv.scatter(self._slots(rows), starts, keys_BKTE.shape[2])
        writer.write(0, keys_BKTE)
        writer.write(1, values_BKTE)
        self._read.update((row, start + count) for row, start, count in zip(rows, starts, counts, strict=True))

    def settle(self, rows: list[int], lengths: list[int], positions_BT: Tensor, own: KeysAndValues) -> None:
        """Store own keys and values (B, K, T, E) of committed tokens; after them ``lengths[b]`` tokens are settled."""
        slots_B1 = to_device(self._slots(rows), self._device)[:, None]
        columns_BT = positions_BT % self.window
        for index, part_BKTE in enumerate(own):
            self._own.kv.data_NBHSD[index][slots_B1, :, columns_BT] = part_BKTE.transpose(1, 2)
        self._settled.update(zip(rows, lengths, strict=True))

    def round(self, rows: list[int]) -> LongSpecRound:
        """The caches of a round in which these rows draft."""
        slots, num_columns = self._slots(rows), max(self._read[row] for row in rows)
        first, last = slots[0], slots[0] + len(slots)
        at = slice(first, last) if slots == list(range(first, last)) else to_device(slots, self._device)
        keys, values = (part_BKSE[at, :, :num_columns] for part_BKSE in self._target.kv.data_NBHSD)
        return LongSpecRound(self._own, slots, (keys, values), [self._read[row] for row in rows], self.window)

    def _slots(self, rows: list[int]) -> list[int]:
        return [self._target.slot[row] for row in rows]


class LongSpecRound:
    """Writers and masks of a round's forwards, level by level; node 0 of every row is its last token.

    Args:
        roots: positions of the rows' last tokens, as many as the target has read.
    """

    def __init__(
        self, own: SlotStorage, slots: list[int], target: KeysAndValues, roots: list[int], window: int
    ) -> None:
        self._own, self._slots, self._target, self._window = own, slots, target, window
        device = own.kv.device
        self._parents: list[list[int]] = [[] for _ in slots]
        self._depths: list[list[int]] = [[] for _ in slots]
        self.roots_B1 = to_device(roots, device)[:, None]
        last_B1 = self.roots_B1 - 1
        self._settled_BW = last_B1 - (last_B1 - torch.arange(window, device=device)) % window  # positions by column
        self._read_BS = torch.arange(target[0].shape[2], device=device) < self.roots_B1

    def feed(
        self, level: int, width: int, counts: list[int], parents: list[list[int]] | None
    ) -> tuple[BothCaches, Tensor]:
        """The writer of a level's nodes, and the mask (B, N, P + S) of what they see.

        Args:
            width: N. counts: nodes of each row; others are padding.
            parents: as `Alignment.forward`; None: every row is a chain.
        """
        starts = [len(known) for known in self._parents]
        for b, count in enumerate(counts):
            self._parents[b] += [starts[b] - 1] * count if parents is None else parents[b]
            self._depths[b] += [level] * count
        writer = self._own.kv.scatter(self._slots, [self._window + start for start in starts], width)
        oldest_B1 = self.roots_B1 + (level - self._window)  # the last position that is out of the window
        settled_BW = (self._settled_BW >= 0) & (self._settled_BW > oldest_B1)
        nodes_BNX = self._nodes(starts, width, writer.num_columns - self._window, level)
        parts = [settled_BW[:, None].expand(-1, width, -1), nodes_BNX, self._read_BS[:, None].expand(-1, width, -1)]
        return BothCaches(writer, self._target), torch.cat(parts, dim=-1)

    def _nodes(self, starts: list[int], width: int, num_columns: int, level: int) -> Tensor:
        """(B, N, nodes so far) bool: a node sees itself and its ancestors, through the window."""
        seen_BNX = np.zeros((len(starts), width, num_columns), dtype=bool)
        for b, (start, parents) in enumerate(zip(starts, self._parents, strict=True)):
            near = level - np.array(self._depths[b], dtype=np.int64) < self._window
            seen_BNX[b, : len(parents) - start, : len(parents)] = ancestry(parents)[start:] & near
        return to_device(torch.from_numpy(seen_BNX), self._own.kv.device)
