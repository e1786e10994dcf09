"""Columns of keys and values that several rows read before their own, held once.

Shape letters: B rows, H key heads, T tokens, S columns of a row's own, P shared columns, L levels, D head size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specdec.core.transfer import to_device

if TYPE_CHECKING:
    from specdec.models.kv import KVStorage


class SharedColumns:
    """What the rows of a forward read before their own columns: one storage after the other, each of one row.

    Rows that have a path in common read the same storages; each is read from its first column up to where the next one
    of the path starts, and the last one up to the row's length.

    Args:
        storages: what is shared. starts: the position of each one's first column.
        paths: the storages that each row reads, by place, in the order of positions; any where it reads none.
        lengths_B: int64, on the CPU: how many columns it reads of them all; 0: none.
    """

    def __init__(
        self, storages: tuple[KVStorage, ...], starts: list[int], paths: list[list[int]], lengths_B: Tensor
    ) -> None:
        self.storages, self.starts, self.paths, self.lengths_B = storages, starts, paths, lengths_B
        self.width = int(lengths_B.max())  # the most columns that a row reads, P
        levels = max(map(len, paths))
        self.paths_BL = torch.tensor([[*path, *[-1] * (levels - len(path))] for path in paths])  # -1 past their ends
        self._readers: list[slice | Tensor] | None = None  # by storage

    def readers(self, number: int) -> slice | Tensor:
        """The rows that read a storage, as an index of rows on its device."""
        if self._readers is None:
            rows: list[list[int]] = [[] for _ in self.storages]
            for b, length in enumerate(self.lengths_B.tolist()):
                for place in self.paths[b] if length else []:
                    rows[place].append(b)
            device, B = self.storages[0].device, len(self.paths)
            self._readers = [slice(0, B) if len(r) == B else to_device(r, device) for r in rows]
        return self._readers[number]

    def positions(self, number: int) -> slice:
        """The positions of a storage's columns, as far as any row reads."""
        start = self.starts[number]
        return slice(start, min(start + self.storages[number].data_NBHSD.shape[3], self.width))

    def columns(self, number: int, index: int, own_BHSD: Tensor) -> Tensor:
        """The keys (index 2l) or values (2l + 1) of a storage, (1, H, at most P, D)."""
        read = self.positions(number)
        return self.storages[number].part(index, own_BHSD)[:, :, : read.stop - read.start]

    def joined(self, index: int, own_BHSD: Tensor) -> Tensor:
        """A copy (B, H, P + S, D) with the shared columns of every row before its own; zero where it reads none."""
        B, H, S, D = own_BHSD.shape
        whole_BHSD = own_BHSD.new_zeros(B, H, self.width + S, D)
        whole_BHSD[:, :, self.width :] = own_BHSD
        for number in range(len(self.storages)):
            whole_BHSD[self.readers(number), :, self.positions(number)] = self.columns(number, index, own_BHSD)
        return whole_BHSD

    def mask(self, own_BTS: Tensor) -> Tensor:
        """Masks (B, T, P + S) from those of the rows' own columns: every query sees all that its row shares."""
        B, T, _ = own_BTS.shape
        lengths_B11 = to_device(self.lengths_B, own_BTS.device)[:, None, None]
        shared_BTP = (torch.arange(self.width, device=own_BTS.device) < lengths_B11).expand(B, T, self.width)
        return torch.cat([shared_BTP, own_BTS], dim=-1)
