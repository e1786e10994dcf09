"""Keys and values of a batch: the storage that alignments lay out, and the two ways a forward writes to it.

Shape letters: N = 2 x layers, B rows, H key heads, T tokens, S columns, D head size, M vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from specdec.core.transfer import to_device
from specdec.errors import ContractError
from specdec.models.shared import SharedColumns

GROWTH_COLUMNS = 128

KVShape = tuple[int, int]
"""Heads and width of one layer's keys, or of its values."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a forward writes: token t of row b in column ``starts_B[b] + t`` of slot ``slots_B[b]``."""

    storage: KVStorage
    slots_B: Tensor  # rows of the storage; on the CPU, as starts_B
    starts_B: Tensor


class KVWriter(Protocol):
    """Where the keys and values of one forward go, and which ones its queries read.

    A storage makes one per forward, so that layers do not depend on the layout of the storage.
    """

    @property
    def place(self) -> Place:
        """Where they are written."""

    @property
    def shared(self) -> SharedColumns | None:
        """Columns that rows read before their own."""

    @property
    def num_columns(self) -> int:
        """Columns that a query reads, with shared ones: the width of the mask."""

    def write(self, index: int, states_BHTD: Tensor) -> Tensor:
        """Write the new keys (index 2l) or values (2l + 1) of layer l; return the rows' own columns, (B, H, S, D)."""

    def written(self) -> None:
        """Called after a forward that stored all keys and values itself, without ``write``."""


@dataclass(frozen=True, slots=True)
class Appending:
    """All rows write to the same columns, after those in use."""

    storage: KVStorage
    start: int
    num_columns: int

    @property
    def shared(self) -> None:
        """None: rows share no columns."""

    @property
    def place(self) -> Place:
        """As in KVWriter."""
        num_rows = self.storage.num_rows
        return Place(self.storage, torch.arange(num_rows), torch.full((num_rows,), self.start))

    def write(self, index: int, states_BHTD: Tensor) -> Tensor:
        """As in KVWriter; returns a view."""
        part_BHSD = self.storage.part(index, states_BHTD)
        part_BHSD[:, :, self.start : self.num_columns] = states_BHTD
        return part_BHSD[:, :, : self.num_columns]

    def written(self) -> None:
        """Nothing to do."""


class Scattering:
    """Every row writes to consecutive columns of its own, in a slot of its own."""

    def __init__(
        self, storage: KVStorage, slots: list[int], starts: list[int], num_new: int, shared: SharedColumns | None
    ) -> None:
        self.place = Place(storage, torch.tensor(slots), torch.tensor(starts))
        self.shared = shared
        self._num_own = max(starts) + num_new
        self.num_columns = self._num_own + (shared.width if shared else 0)
        self._num_new = num_new
        consecutive = slots == list(range(slots[0], slots[0] + len(slots)))
        self.slots = (
            slice(slots[0], slots[0] + len(slots)) if consecutive else to_device(self.place.slots_B, storage.device)
        )
        self._places_BHT: Tensor | None = None  # of each token's vector among the slots x H x S of a part

    def write(self, index: int, states_BHTD: Tensor) -> Tensor:
        """As in KVWriter; returns a view if the slots are consecutive, otherwise a copy."""
        part_BHSD = self.place.storage.part(index, states_BHTD)
        _, heads, _, size = states_BHTD.shape
        places_M = self._places()[:, :heads].flatten()
        self.place.storage.vectors(index, size).index_copy_(0, places_M, states_BHTD.reshape(-1, size))
        return part_BHSD[self.slots, :, : self._num_own]

    def written(self) -> None:
        """Nothing to do."""

    def _places(self) -> Tensor:
        if self._places_BHT is None:
            _, _, heads, columns, _ = self.place.storage.data_NBHSD.shape
            heads_BH = self.place.slots_B[:, None] * heads + torch.arange(heads)
            columns_BT = self.place.starts_B[:, None] + torch.arange(self._num_new)
            places_BHT = heads_BH[..., None] * columns + columns_BT[:, None]
            self._places_BHT = to_device(places_BHT, self.place.storage.device)
        return self._places_BHT


class KVStorage:
    """Keys and values of a batch of rows, with room to grow; columns beyond ``width`` are unused.

    One tensor for all layers, (N, B, H, S, D) with N = 2 x layers: index 2l holds layer l's keys and 2l + 1 its values.
    If parts have different heads or widths (latent attention, layers of several kinds), H and D are the largest, and a
    part uses the first of them; the rest stays zero.
    """

    def __init__(self, data_NBHSD: Tensor, width: int, shapes: tuple[KVShape, ...]) -> None:
        self.data_NBHSD = data_NBHSD
        self.width = width
        self.shapes = shapes  # heads and width of each of the N parts, at most H and D

    @property
    def num_rows(self) -> int:
        """Rows of the batch."""
        return self.data_NBHSD.shape[1]

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.data_NBHSD.device

    def part(self, index: int, states_BHTD: Tensor) -> Tensor:
        """The view (B, H, S, D) that stores such keys or values.

        Raises:
            ContractError: their heads or width differ from those measured when the model was loaded.
        """
        heads, size = states_BHTD.shape[1], states_BHTD.shape[3]
        if (heads, size) != self.shapes[index]:
            name, expected = ("values" if index % 2 else "keys"), self.shapes[index]
            raise ContractError(
                f"layer {index // 2} writes {name} of {heads} heads x {size}, its storage holds "
                f"{expected[0]} x {expected[1]}"
            )
        part_BHSD = self.data_NBHSD[index]
        whole = (heads, size) == (part_BHSD.shape[1], part_BHSD.shape[3])
        return part_BHSD if whole else part_BHSD[:, :heads, :, :size]

    def vectors(self, index: int, size: int) -> Tensor:
        """A part as B x H x S vectors, cut to their first ``size`` numbers."""
        vectors_MD = self.data_NBHSD[index].view(-1, self.data_NBHSD.shape[-1])
        return vectors_MD if vectors_MD.shape[1] == size else vectors_MD[:, :size]

    def copied(self, row: int, first: int, last: int) -> KVStorage:
        """A storage of one row that has copies of some columns of a row of this one."""
        data_N1HSD = self.data_NBHSD[:, row : row + 1, :, first:last].clone(memory_format=torch.contiguous_format)
        return KVStorage(data_N1HSD, last - first, self.shapes)

    def reserve(self, width: int) -> None:
        """Make room for ``width`` columns. New columns are zero, as even masked values must be finite."""
        N, B, H, S, D = self.data_NBHSD.shape
        if width > S:
            grown = self.data_NBHSD.new_zeros(N, B, H, width + GROWTH_COLUMNS, D)
            grown[..., : self.width, :] = self.data_NBHSD[..., : self.width, :]
            self.data_NBHSD = grown

    def append(self, num_new: int) -> Appending:
        """The writer of a forward that adds ``num_new`` columns to all rows."""
        start = self.width
        self.reserve(start + num_new)
        self.width = start + num_new
        return Appending(self, start, self.width)

    def scatter(
        self, slots: list[int], starts: list[int], num_new: int, shared: SharedColumns | None = None
    ) -> Scattering:
        """The writer of a forward that writes ``num_new`` tokens of the rows in ``slots`` from their own columns on.

        Args:
            slots: the storage's row of each row of the forward.
            starts: the column of each row's first token.
            shared: what the rows read before their own columns.
        """
        num_columns = max(starts) + num_new
        self.reserve(num_columns)
        self.width = max(self.width, num_columns)
        return Scattering(self, slots, starts, num_new, shared)


def grown_columns(prompt: int, chunk: int, last: int, step: int) -> tuple[int, int]:
    """Columns of a `KVStorage` at the end of a row of ``last`` columns, and those that it had before it grew last.

    Args:
        prompt: columns that are first filled, ``chunk`` at a time; the others ``step`` at a time.
    """
    columns, before, width = GROWTH_COLUMNS, 0, 0
    for stop, size in ((prompt, chunk), (last, step)):
        while width < stop:
            width = min(width + size, stop)
            if width > columns:
                before, columns = columns, width + GROWTH_COLUMNS
    return columns, before
