"""Columns of keys and values that several rows read before their own, held once.

Shape letters: B rows, H key heads, T tokens, S columns of a row's own, P shared columns, D head size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specdec.core.transfer import to_device

if TYPE_CHECKING:
    from specdec.models.kv import KVStorage


class SharedColumns:
    """What the rows of a forward read before their own columns: the first ones of a storage of one row.

    Args:
        of_B: the storage that each row reads, by place; any where it reads none.
        lengths_B: int64, on the CPU: how many of its columns; 0: none.
    """

    def __init__(self, storages: tuple[KVStorage, ...], of_B: list[int], lengths_B: Tensor) -> None:
        self.storages, self.of_B, self.lengths_B = storages, of_B, lengths_B
        self.width = int(lengths_B.max())  # the most columns that a row reads, P
        self._readers: list[slice | Tensor] | None = None  # by storage

    def readers(self, number: int) -> slice | Tensor:
        """The rows that read a storage, as an index of rows on its device."""
        if self._readers is None:
            lengths, B = self.lengths_B.tolist(), len(self.of_B)
            rows = [[b for b in range(B) if self.of_B[b] == n and lengths[b]] for n in range(len(self.storages))]
            self._readers = [slice(0, B) if len(r) == B else to_device(r, self.storages[0].device) for r in rows]
        return self._readers[number]

    def columns(self, number: int, index: int, own_BHSD: Tensor) -> Tensor:
        """The keys (index 2l) or values (2l + 1) of a storage, (1, H, at most P, D)."""
        return self.storages[number].part(index, own_BHSD)[:, :, : self.width]

    def joined(self, index: int, own_BHSD: Tensor) -> Tensor:
        """A copy (B, H, P + S, D) with the shared columns of every row before its own; zero where it reads none."""
        B, H, S, D = own_BHSD.shape
        whole_BHSD = own_BHSD.new_zeros(B, H, self.width + S, D)
        whole_BHSD[:, :, self.width :] = own_BHSD
        for number in range(len(self.storages)):
            shared_1HPD = self.columns(number, index, own_BHSD)
            whole_BHSD[self.readers(number), :, : shared_1HPD.shape[2]] = shared_1HPD
        return whole_BHSD

    def mask(self, own_BTS: Tensor) -> Tensor:
        """Masks (B, T, P + S) from those of the rows' own columns: every query sees all that its row shares."""
        B, T, _ = own_BTS.shape
        lengths_B11 = to_device(self.lengths_B, own_BTS.device)[:, None, None]
        shared_BTP = (torch.arange(self.width, device=own_BTS.device) < lengths_B11).expand(B, T, self.width)
        return torch.cat([shared_BTP, own_BTS], dim=-1)
