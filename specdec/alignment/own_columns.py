"""The columns of rows in their slots, as prefixes are made of them."""

from __future__ import annotations

from dataclasses import dataclass

from specdec.alignment.content import Contents
from specdec.alignment.layout import padded
from specdec.alignment.prefixes import CHUNK_TOKENS, Columns
from specdec.alignment.slots import SlotStorage, feed_chains
from specdec.models.kv import KVStorage
from specdec.models.shared import SharedColumns


@dataclass(frozen=True, slots=True)
class OwnColumns(Columns):
    """Of an alignment whose column j of a slot is the j-th token that its row has to itself."""

    slots: SlotStorage
    contents: Contents

    def computed(self, tokens: list[int], after: SharedColumns | None) -> KVStorage:
        model = self.slots.model
        kv = model.empty_storage(1, len(tokens))
        for start in range(0, len(tokens), CHUNK_TOKENS):
            part = tokens[start : start + CHUNK_TOKENS]
            tokens_1T, counts = padded([part], model.device), [len(part)]
            feed_chains(model, kv, [0], [start], tokens_1T, counts, num_logits=1, shared=after)
        return kv

    def copied(self, row: int, first: int, last: int) -> KVStorage:
        return self.slots.kv.copied(self.slots.slot[row], first, last)

    def may_move(self, row: int) -> bool:
        return not self.contents[row].parents

    def begin_at(self, row: int, position: int, before: int) -> None:
        own_NHSD = self.slots.kv.data_NBHSD[:, self.slots.slot[row]]
        count, left = position - before, self.contents[row].length - position
        own_NHSD[:, :, :left] = own_NHSD[:, :, count : count + left].clone()
