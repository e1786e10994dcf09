"""Bugs in the strategies whose rows share columns, with holes between: masked and rollback."""

from __future__ import annotations

from mutations.planting import Intercepting, Patch, planted, wrapped
from specdec.alignment import masked, rollback
from specdec.alignment.columns import ColumnBatch
from specdec.alignment.content import Content, Contents
from specdec.alignment.rollback import RollbackAlignment

MASKED, ROLLBACK = "alignment=masked", "alignment=rollback"


@planted(MASKED, "rejected columns are kept instead of the accepted", "content")
def rejected_columns_kept(patch: Patch):
    def keep(original, self, row, stay, nodes):
        last = range(len(self.nodes[row]))[-len(nodes) :] if nodes and row not in self.pool else nodes
        original(self, row, stay, list(last))

    wrapped(patch, ColumnBatch, "keep", keep)


@planted(MASKED, "the kept nodes' columns in the wrong order", "content")
def kept_in_wrong_order(patch: Patch):
    wrapped(patch, ColumnBatch, "keep", lambda original, self, row, stay, nodes: original(self, row, stay, nodes[::-1]))


@planted(MASKED, "compaction forgets to move the uncommitted", "content", "trees")
def uncommitted_not_moved(patch: Patch):
    def compact(original, self):
        before = self.kv.data_NBHSD.clone()
        original(self)
        for b, row in enumerate(self.rows):
            for column in self.nodes.get(row, []):
                self.kv.data_NBHSD[:, b, :, column] = before[:, b, :, column]

    wrapped(patch, ColumnBatch, "compact", compact)


@planted(MASKED, "compaction moves the batch's first row only", "content")
def first_row_compacted(patch: Patch):
    def compact(original, self):
        before = self.kv.data_NBHSD.clone()
        original(self)
        self.kv.data_NBHSD[:, 1:] = before[:, 1:]

    wrapped(patch, ColumnBatch, "compact", compact)


@planted(MASKED, "a row that leaves takes the cache of another", "content")
def another_cache_taken(patch: Patch):
    def cached(original, self, row):
        if row in self.pool:
            return original(self, row)
        rows, self.rows = self.rows, [row]
        try:
            return original(self, row)
        finally:
            self.rows = rows

    wrapped(patch, ColumnBatch, "cached", cached)


@planted(MASKED, "a number that is admitted again continues at its old positions", "position", "growth of the cache")
def stale_positions(patch: Patch):
    class Late(Content):
        offset = 0

        def feed(self, num_tokens, parents):
            return [position + self.offset for position in super().feed(num_tokens, parents)]

    class Remembering(Contents):
        def __init__(self) -> None:
            super().__init__()
            self.gone: dict[int, int] = {}

        def release(self, rows):
            self.gone.update((row, self[row].length) for row in rows if row in self)
            super().release(rows)

        def admit(self, rows):
            super().admit(rows)
            for row in rows:
                self[row] = Late()
                self[row].offset = self.gone.get(row, 0)

    patch.setattr(masked, "Contents", Remembering)


@planted(ROLLBACK, "the first nodes are fed again in place of the kept ones", "content", "trees")
def first_nodes_fed_again(patch: Patch):
    class First(RollbackAlignment):
        def commit(self, rows, kept):
            self._copy_fed_ids()
            fed = {row: list(tokens) for row, tokens in self._node_tokens.items()}
            super().commit(rows, kept)
            for row, keep in zip(rows, kept, strict=True):
                if not isinstance(keep, int) and keep:
                    self._tokens[row][-len(keep) :] = fed[row][: len(keep)]

    return First


@planted(ROLLBACK, "missing tokens are not fed again", "visibility", "chains")
def missing_not_fed(patch: Patch):
    patch.setattr(rollback, "bisect_left", lambda columns, cut: len(columns))


@planted(ROLLBACK, "missing tokens at the positions of the new ones", "visibility", "chains")
def missing_positions(patch: Patch):
    def late(model, tokens_BT, positions_BT, mask_BTS, writer, num_logits):
        lead = tokens_BT.shape[1] - num_logits
        positions_BT[:, :lead] += 1
        return model.forward(tokens_BT, positions_BT, mask_BTS, writer, num_logits)

    class Late(RollbackAlignment):
        def __init__(self, model, clock) -> None:
            super().__init__(model, clock)
            self._right, self.model = model, Intercepting(model, late)

        def content(self, row):
            wrong, self.model = self.model, self._right
            try:
                return super().content(row)
            finally:
                self.model = wrong

    return Late


@planted(ROLLBACK, "missing tokens see their successors", "logits", "chains")
def missing_see_successors(patch: Patch):
    class Seeing(RollbackAlignment):
        def _place(self, rows, missing, num_new):
            mask_BTS = super()._place(rows, missing, num_new)
            return mask_BTS | self._batch.committed(rows, mask_BTS.shape[-1])[:, None]

    return Seeing


@planted(ROLLBACK, "the missing tokens of a row that leaves the batch are fed as padding", "content", "trees")
def missing_fed_as_padding(patch: Patch):
    class Forgetting(RollbackAlignment):
        def forward(self, rows, tokens_BT, num_tokens=None, parents=None):
            for row in self._batch.living:
                if row not in rows:
                    num_cached = len(self._batch.columns[row])
                    self._tokens[row][num_cached:] = [0] * (len(self._tokens[row]) - num_cached)
            return super().forward(rows, tokens_BT, num_tokens, parents)

    return Forgetting
