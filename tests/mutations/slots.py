"""Bugs in the strategies that give every row a slot of its own: inplace and expansion."""

from __future__ import annotations

from dataclasses import replace

import torch

from mutations.planting import Patch, planted, wrapped
from specdec.alignment import expansion
from specdec.alignment.expansion import ExpansionAlignment
from specdec.alignment.inplace import InplaceAlignment
from specdec.alignment.slots import SlotStorage
from specdec.models.execution.base import Chains
from specdec.models.kv import KVStorage

INPLACE, EXPANSION = "alignment=inplace", "alignment=expansion"
GROWTH = "growth of the cache"


def is_prefix(kept) -> bool:
    """Whether a commit keeps the first nodes as they were fed."""
    return isinstance(kept, int) or kept == list(range(len(kept)))


@planted(INPLACE, "write cursor one column late", "position")
def cursor_late(patch: Patch):
    class Late(InplaceAlignment):
        def _feed_chains(self, rows, starts, tokens_BT, counts, states=None):
            return super()._feed_chains(rows, [start + 1 for start in starts], tokens_BT, counts, states)

    return Late


@planted(INPLACE, "rows answered in the order of the slots", "logits", "chains")
def answered_in_slot_order(patch: Patch):
    class Unsorted(InplaceAlignment):
        def forward(self, rows, tokens_BT, num_tokens=None, parents=None):
            logits_BTV = super().forward(rows, tokens_BT, num_tokens, parents)
            return logits_BTV[sorted(range(len(rows)), key=lambda b: self._slots.slot[rows[b]])]

    return Unsorted


@planted(INPLACE, "a tree's path is not moved together", "content", "trees")
def path_not_moved(patch: Patch):
    class Unmoved(InplaceAlignment):
        def commit(self, rows, kept):
            before = self._slots.kv.data_NBHSD.clone()
            super().commit(rows, kept)
            self._slots.kv.data_NBHSD.copy_(before)

    return Unmoved


@planted(INPLACE, "the last node of a tree's path is taken from the column before it", "content", "trees")
def path_off_by_one(patch: Patch):
    class OffByOne(InplaceAlignment):
        def commit(self, rows, kept):
            starts = {row: self.length(row) for row in rows}
            before = self._slots.kv.data_NBHSD.clone()
            super().commit(rows, kept)
            for row, keep in zip(rows, kept, strict=True):
                if not is_prefix(keep):
                    data_NHSD = self._slots.kv.data_NBHSD[:, self._slots.slot[row]]
                    wrong_NHD = before[:, self._slots.slot[row], :, starts[row] + keep[-1] - 1]
                    data_NHSD[:, :, self.length(row) - 1] = wrong_NHD

    return OffByOne


@planted(INPLACE, "num_tokens of the row that feeds most is taken for all", "position", "chains")
def num_tokens_of_the_longest(patch: Patch):
    class Overfeeding(InplaceAlignment):
        def forward(self, rows, tokens_BT, num_tokens=None, parents=None):
            return super().forward(rows, tokens_BT, None if parents is None else num_tokens, parents)

    return Overfeeding


@planted(INPLACE, "a moved row leaves its first column behind", "visibility")
def moved_row_leaves_a_column(patch: Patch):
    def close_up(original, self):
        before, slots = self.kv.data_NBHSD.clone(), dict(self.slot)
        original(self)
        for row, slot in self.slot.items():
            if slot != slots[row]:
                self.kv.data_NBHSD[:, slot, :, 0] = before[:, slot, :, 0]

    wrapped(patch, SlotStorage, "close_up", close_up)


@planted(INPLACE, "two newcomers share a slot", "visibility")
def newcomers_share_a_slot(patch: Patch):
    def take(self, rows):
        free = max(self.slot.values(), default=-1) + 1
        self.slot.update(dict.fromkeys(rows, free))
        self.reserve(free + 1)

    patch.setattr(SlotStorage, "take", take)


@planted(INPLACE, "a query sees the column after its own", "visibility")
def query_sees_one_more(patch: Patch):
    mask = Chains.mask
    patch.setattr(Chains, "mask", lambda layout: mask(layout) | mask(layout).roll(1, -1))


@planted(INPLACE, "what idle slots are fed goes to their first column", "content", GROWTH)
def idle_slots_overwritten(patch: Patch):
    class Overwriting(InplaceAlignment):
        def _span_starts(self, slots, starts, num_new):
            found = super()._span_starts(slots, starts, num_new)
            if found is None:
                return None
            return [start if slots[0] + i in slots else 0 for i, start in enumerate(found)]

    return Overwriting


@planted(INPLACE, "more slots, without what the old ones held", "visibility")
def growth_of_slots_loses_all(patch: Patch):
    def reserve(original, self, count):
        before = self.kv
        original(self, count)
        if self.kv is not before:
            self.kv.data_NBHSD.zero_()

    wrapped(patch, SlotStorage, "reserve", reserve)


@planted(INPLACE, "more slots, and the width in use is forgotten", "visibility", GROWTH)
def growth_of_slots_forgets_width(patch: Patch):
    def reserve(original, self, count):
        before = self.kv
        original(self, count)
        if self.kv is not before:
            self.kv.width = 0

    wrapped(patch, SlotStorage, "reserve", reserve)


@planted(INPLACE, "more columns, with the first layer's content only", "logits", GROWTH)
def growth_keeps_one_layer(patch: Patch):
    def reserve(original, self, width):
        before = self.data_NBHSD
        original(self, width)
        if self.data_NBHSD is not before:
            self.data_NBHSD[2:] = 0

    wrapped(patch, KVStorage, "reserve", reserve)


@planted(EXPANSION, "the copy of the first kept node is brought home", "content")
def first_copy_brought_home(patch: Patch):
    class First(ExpansionAlignment):
        def commit(self, rows, kept):
            for row, keep in zip(rows, kept, strict=True):
                nodes = list(range(keep - self.length(row))) if isinstance(keep, int) else keep
                if nodes:
                    self._copies[row][nodes[-1]] = self._copies[row][nodes[0]]
            super().commit(rows, kept)

    return First


@planted(EXPANSION, "the neighbour's content is copied", "visibility")
def neighbour_copied(patch: Patch):
    class Neighbour(ExpansionAlignment):
        def _expand(self, bases, room):
            return super()._expand([replace(base, index=0) for base in bases], room)

    return Neighbour


@planted(EXPANSION, "a copy lacks the last token of what it is a copy of", "visibility")
def copy_lacks_a_token(patch: Patch):
    class Short(ExpansionAlignment):
        def _expand(self, bases, room):
            kv = super()._expand(bases, room)
            for c, base in enumerate(bases):
                if base.length:
                    kv.data_NBHSD[:, c, :, base.length - 1] = 0
            return kv

    return Short


@planted(EXPANSION, "logits read one token early", "logits")
def logits_one_early(patch: Patch):
    def feed_chains(original, *given, **more):
        logits_BTV = original(*given, **more)
        return torch.cat([logits_BTV[:, :1], logits_BTV[:, :-1]], dim=1)

    wrapped(patch, expansion, "feed_chains", feed_chains)


@planted(EXPANSION, "more columns at home, without what the old ones held", "content", GROWTH)
def growth_at_home_loses_all(patch: Patch):
    class Losing(ExpansionAlignment):
        def commit(self, rows, kept):
            before = self._home.kv.data_NBHSD
            super().commit(rows, kept)
            grown = self._home.kv.data_NBHSD
            if grown.shape != before.shape:
                grown[..., : before.shape[3] - 8, :] = 0

    return Losing


@planted(INPLACE, "six rows and more get each other's logits", "logits", "chains")
def logits_of_neighbours(patch: Patch):
    class Rolled(InplaceAlignment):
        def forward(self, rows, tokens_BT, num_tokens=None, parents=None):
            logits_BTV = super().forward(rows, tokens_BT, num_tokens, parents)
            return logits_BTV.roll(1, 0) if len(rows) >= 6 else logits_BTV

    return Rolled
