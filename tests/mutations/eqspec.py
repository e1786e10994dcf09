"""Bugs in the left-padded reference, and in the bookkeeping and the masks that it shares with others."""

from __future__ import annotations

import numpy as np

from mutations.planting import Patch, planted, wrapped
from specdec.alignment import eqspec, layout
from specdec.alignment.content import Content
from specdec.alignment.eqspec import EqspecAlignment
from specdec.models.kv import KVStorage

PLUGIN = "alignment=eqspec"


@planted(PLUGIN, "position off by one", "position", "trees")
def position_off_by_one(patch: Patch):
    def feed(original, self, num_tokens, parents):
        positions = original(self, num_tokens, parents)
        return positions if parents is None else [position + 1 for position in positions]

    wrapped(patch, Content, "feed", feed)


@planted(PLUGIN, "position of a chain restarts in every forward", "position", "chains")
def chain_restarts(patch: Patch):
    def feed(original, self, num_tokens, parents):
        if parents is not None:
            return original(self, num_tokens, parents)
        earlier, self.depths = self.depths, []
        positions = original(self, num_tokens, parents)
        self.depths = earlier + self.depths
        return positions

    wrapped(patch, Content, "feed", feed)


@planted(PLUGIN, "tree depth counted as node number", "position", "trees")
def depth_is_node_number(patch: Patch):
    def feed(original, self, num_tokens, parents):
        start = len(self.parents)
        positions = original(self, num_tokens, parents)
        if parents is None:
            return positions
        self.depths[start:] = range(start, len(self.parents))
        return [self.length + depth for depth in self.depths[start:]]

    wrapped(patch, Content, "feed", feed)


@planted(PLUGIN, "a rejected node is kept", "length")
def rejected_node_kept(patch: Patch):
    def keep(original, self, kept):
        answer = original(self, kept)
        self.length += 1
        return answer

    wrapped(patch, Content, "keep", keep)


@planted(PLUGIN, "an empty path keeps the first node", "length")
def empty_path_keeps_one(patch: Patch):
    wrapped(
        patch, Content, "keep", lambda original, self, kept: original(self, kept or ([0] if self.parents else kept))
    )


@planted(PLUGIN, "a cut into committed content is not made", "length")
def no_cut_into_the_committed(patch: Patch):
    def keep(original, self, kept):
        return original(self, max(kept, self.length) if isinstance(kept, int) else kept)

    wrapped(patch, Content, "keep", keep)


def _mask(start: int, length: int):
    """Columns of a row that begin later, and are more or fewer, than they should."""

    def plant(patch: Patch):
        def consecutive(original, starts, lengths, *rest):
            return original([s + start for s in starts], [n + length for n in lengths], *rest)

        wrapped(patch, eqspec, "consecutive", consecutive)

    return plant


mask_short_at_start = planted(PLUGIN, "mask one column short at its start", "visibility")(_mask(1, -1))
mask_short_at_end = planted(PLUGIN, "mask one column short at its end", "visibility")(_mask(0, -1))
mask_too_wide = planted(PLUGIN, "mask one column too wide: a stale column is visible", "visibility")(_mask(0, 1))


@planted(PLUGIN, "siblings see each other", "visibility", "trees")
def siblings_see_each_other(patch: Patch):
    patch.setattr(layout, "ancestry", lambda parents: np.tri(len(parents), dtype=bool))


@planted(PLUGIN, "padding of the prompt is attended", "visibility")
def prompt_padding_attended(patch: Patch):
    class Attending(EqspecAlignment):
        def admit(self, rows, contents):
            with patch.context() as within:
                wrapped(within, eqspec, "consecutive", lambda original, *given: original(*given).fill_(True))
                super().admit(rows, contents)

    return Attending


@planted(PLUGIN, "one row's mask leaks to its neighbour in batches of three or more", "visibility")
def mask_leaks_in_threes(patch: Patch):
    def attention_mask(original, **given):
        mask_BTS = original(**given)
        if len(mask_BTS) > 2:
            mask_BTS[2] |= mask_BTS[1]
        return mask_BTS

    wrapped(patch, eqspec, "attention_mask", attention_mask)


@planted(PLUGIN, "lengths taken from the pad id", "length")
def lengths_from_pad_id(patch: Patch):
    class Inferring(EqspecAlignment):
        def admit(self, rows, contents):
            super().admit(rows, contents)
            for row, content in zip(rows, contents, strict=True):
                self._contents[row].length = sum(map(bool, content))

    return Inferring


@planted(PLUGIN, "fed tokens that equal the pad id are hidden", "visibility")
def pad_id_hidden(patch: Patch):
    class Hiding(EqspecAlignment):
        def forward(self, rows, tokens_BT, num_tokens=None, parents=None):
            def attention_mask(original, **given):
                mask_BTS = original(**given)
                mask_BTS[..., -tokens_BT.shape[1] :] &= (tokens_BT != 0)[:, None]
                mask_BTS[..., 0] |= ~mask_BTS.any(-1)  # finite, at least
                return mask_BTS

            with patch.context() as within:
                wrapped(within, eqspec, "attention_mask", attention_mask)
                return super().forward(rows, tokens_BT, num_tokens, parents)

    return Hiding


class Realigning(EqspecAlignment):
    """Undoes the move of some rows when the padding changes."""

    def stays(self, b, row, runs) -> bool:
        """Whether row b of the batch is wrongly left where it was."""
        raise NotImplementedError

    def _realign(self, runs):
        before = None if self._storage is None else self._storage.data_NBHSD.clone()
        super()._realign(runs)
        for b, row in enumerate(self._batch):
            if row in runs and self.stays(b, row, runs):
                self._storage.data_NBHSD[:, b] = before[:, b]


@planted(PLUGIN, "columns are not moved when the padding changes", "content")
def columns_not_moved(patch: Patch):
    class Unmoved(Realigning):
        def stays(self, b, row, runs) -> bool:
            return runs[row].consecutive

    return Unmoved


@planted(PLUGIN, "only the batch's first row is moved", "content")
def wrong_row_moved(patch: Patch):
    class FirstOnly(Realigning):
        def stays(self, b, row, runs) -> bool:
            return b > 0

    return FirstOnly


@planted(PLUGIN, "a row's own padding is forgotten when it is taken out", "content")
def own_padding_forgotten(patch: Patch):
    class Forgetting(EqspecAlignment):
        def content(self, row):
            if row in self._pool:
                return super().content(row)
            own, self._pads[row] = self._pads[row], min(self._pads.values())
            try:
                return super().content(row)
            finally:
                self._pads[row] = own

    return Forgetting


@planted(PLUGIN, "tree path taken as if it were consecutive", "content", "trees")
def path_taken_as_consecutive(patch: Patch):
    patch.setattr(eqspec._KeptColumns, "consecutive", True)


@planted(PLUGIN, "when a row is released, the first row's columns leave the batch in its stead", "content", "chains")
def wrong_columns_leave(patch: Patch):
    class Closing(EqspecAlignment):
        def release(self, rows):
            super().release(rows)
            for row in set(rows) & set(self._batch):
                self._batch = [other for other in self._batch if other != row]
                self._storage.data_NBHSD = self._storage.data_NBHSD[:, 1:]

    return Closing


@planted(PLUGIN, "a row that feeds less is answered with its last column", "filler", "chains")
def answered_with_the_filler(patch: Patch):
    class Filling(EqspecAlignment):
        def forward(self, rows, tokens_BT, num_tokens=None, parents=None):
            logits_BTV = super().forward(rows, tokens_BT, num_tokens, parents).clone()
            for b, count in enumerate(num_tokens or []):
                logits_BTV[b, max(count - 1, 0)] = logits_BTV[b, -1]
            return logits_BTV

    return Filling


@planted(PLUGIN, "more columns for the batch, without what the old ones held", "visibility", "growth of the cache")
def growth_of_columns_loses_all(patch: Patch):
    def reserve(original, self, width):
        before = self.data_NBHSD
        original(self, width)
        if self.data_NBHSD is not before:
            self.data_NBHSD.zero_()

    wrapped(patch, KVStorage, "reserve", reserve)
