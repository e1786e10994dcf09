"""The columns of rows in their slots, as prefixes are made of them."""

from __future__ import annotations

from dataclasses import dataclass

from specdec.alignment.content import Contents
from specdec.alignment.layout import padded
from specdec.alignment.prefixes import CHUNK_TOKENS, Columns
from specdec.alignment.slots import SlotStorage, feed_chains
from specdec.models.kv import KVStorage


@dataclass(frozen=True, slots=True)
class OwnColumns(Columns):
    """Of an alignment whose column j of a slot is the j-th token that its row has to itself."""

    slots: SlotStorage
    contents: Contents

    def computed(self, tokens: list[int]) -> KVStorage:
        model = self.slots.model
        kv = model.empty_storage(1, len(tokens))
        for start in range(0, len(tokens), CHUNK_TOKENS):
            part = tokens[start : start + CHUNK_TOKENS]
            feed_chains(model, kv, [0], [start], padded([part], model.device), [len(part)], num_logits=1)
        return kv

    def copied(self, row: int, length: int) -> KVStorage:
        kv = self.slots.model.empty_storage(1, length)
        kv.data_NBHSD[:, 0] = self.slots.kv.data_NBHSD[:, self.slots.slot[row], :, :length]
        kv.width = length
        return kv

    def may_move(self, row: int) -> bool:
        return not self.contents[row].parents

    def drop_first(self, row: int, length: int) -> None:
        own_NHSD = self.slots.kv.data_NBHSD[:, self.slots.slot[row]]
        left = self.contents[row].length - length
        own_NHSD[:, :, :left] = own_NHSD[:, :, length : length + left].clone()
