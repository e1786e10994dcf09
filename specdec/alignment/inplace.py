"""In place: every row has its own slot and write cursor, and nothing is moved to keep rows aligned.

Idea: column j of a row's slot holds token j, so a position is a column and a row's length is its cursor. Rejected
tokens stay in the columns after the cursor until the next tokens overwrite them; an explicit mask (a query sees the
columns up to its own) hides them until then. A batch is rectangular because its storage is, not because its rows are.
Cost: a commit updates integers on the host and moves no data. Only a tree's path that is not a prefix of the nodes is
moved, column by column. A forward over rows with consecutive slots reads the storage without a copy. If slots between
them are idle (their rows' prompts are still being read, or they are not in this group), either these are fed too, with
masked padding tokens, or the columns read are copied, once per layer: whichever costs less.
A released row leaves a free slot. If no new row takes it before the next round over all rows, the row of the highest
slot moves into it.
Source: the reference (arXiv 2510.22876) states that a masked layout has to move the cache every round; one cursor per
row avoids that. Static caches with per-row positions are common in serving engines.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.alignment.base import Admitted, Alignment, Kept
from specdec.alignment.checkpoints import Checkpoints
from specdec.alignment.content import Contents
from specdec.alignment.layout import attention_mask, consecutive, padded, real_tokens
from specdec.alignment.own_columns import OwnColumns
from specdec.alignment.prefixes import Prefixes, check_sharing
from specdec.alignment.slots import SlotStorage, feed_chains, idle_are_cheap
from specdec.core.clock import Clock
from specdec.core.transfer import to_device
from specdec.errors import ConfigError
from specdec.models.causal_lm import CausalLM
from specdec.models.states import StateFeed


class InplaceAlignment(Alignment):
    """Slots with write cursors; see the module's text."""

    feeds_given_only = True
    prompts_by_position = True
    restores_states = True

    def __init__(self, model: CausalLM, clock: Clock, *, shared_prefix: int = 0) -> None:
        if shared_prefix < 0:
            raise ConfigError(
                f"alignment.shared_prefix={shared_prefix}: it must be 0 (off), or the fewest tokens that are shared"
            )
        if shared_prefix:
            check_sharing(model, f"alignment.shared_prefix={shared_prefix}", "alignment.shared_prefix=0")
        self.model = model
        self.clock = clock
        self._contents = Contents()
        self._slots = SlotStorage(model)
        self._checkpoints = Checkpoints(model) if model.recurrent else None
        self._prefixes = Prefixes(shared_prefix, OwnColumns(self._slots, self._contents))

    @classmethod
    def moved_columns(cls, rows: Admitted) -> float:
        """The old storage while a larger one is filled."""
        return rows.in_flight * rows.columns_before

    @classmethod
    def kept_states(cls, rows: Admitted) -> float:
        """The state of every row, and a checkpoint per token that it is fed."""
        return rows.in_flight * (1 + rows.num_fed)

    @classmethod
    def fed_rows(cls, in_flight: int, batch: int) -> int:
        """Idle slots may be fed too, at most as many as rows (``idle_are_cheap``)."""
        return min(in_flight, 2 * batch)

    def expect(self, num_rows: int) -> None:
        """Reserve the slots now, because storage that grows group by group is copied every time."""
        with self.clock.stage("align"):
            self._slots.reserve(len(self._slots.slot) + num_rows)
            if self._checkpoints is not None:
                self._checkpoints.expect(num_rows)

    def hold(self, contents: list[list[int]]) -> list[int]:
        return self._prefixes.hold(contents) if self._prefixes.used else super().hold(contents)

    def declare(self, tokens: list[int]) -> None:
        check_sharing(self.model, "data.shared_prefix", "data.shared_prefix=null")
        self._prefixes.declare(tokens)

    def shared_length(self, row: int) -> int:
        return self._prefixes.length(row)

    def admit(self, rows: list[int], contents: list[list[int]]) -> None:
        """Prefill new rows from column 0 of their slots, after what they share."""
        self._contents.admit(rows)
        shared = self._prefixes.admit(rows, contents)
        with self.clock.stage("align"):
            self._slots.take(rows)
            if self._checkpoints is not None:
                self._checkpoints.admit(rows)
        own = [content[length:] for content, length in zip(contents, shared, strict=True)]
        if any(own):
            tokens_BT, counts = padded(own, self.model.device), [len(tokens) for tokens in own]
            if self._checkpoints is not None:
                self._feed_parts(rows, tokens_BT, counts, num_logits=1)
                self.commit(rows, list(counts))
                return
            starts = [0] * len(rows)
            slots = [self._slots.slot[row] for row in rows]
            columns = self._prefixes.of(rows)
            feed_chains(self.model, self._slots.kv, slots, starts, tokens_BT, counts, num_logits=1, shared=columns)
        for row, content in zip(rows, contents, strict=True):
            self._contents[row].length = len(content)

    def release(self, rows: list[int]) -> None:
        """Drop rows and free their slots."""
        self._contents.release(rows)
        self._slots.free(rows)
        self._prefixes.release(rows)
        if self._checkpoints is not None:
            self._checkpoints.release(rows)

    def forward(
        self,
        rows: list[int],
        tokens_BT: Tensor,
        num_tokens: list[int] | None = None,
        parents: list[list[int]] | None = None,
    ) -> Tensor:
        """Write each row's tokens from its cursor on. The model runs in slot order unless it reads any slots."""
        self._contents.require(rows, "forward")
        if len(rows) == len(self._contents) and self._slots.has_gaps():
            with self.clock.stage("align"):
                self._slots.close_up()
        counts = num_tokens or [tokens_BT.shape[1]] * len(rows)
        contents = [self._contents[row] for row in rows]
        if self._checkpoints is not None and parents is None and self._checkpoints.runs_chunked(contents, counts):
            return self._feed_parts(rows, tokens_BT, counts)
        slots = [self._slots.slot[row] for row in rows]
        if self.model.execution.ragged or slots == sorted(slots):
            return self._feed(rows, slots, tokens_BT, counts, parents)
        order = sorted(range(len(rows)), key=slots.__getitem__)
        order_B = to_device(order, self.model.device)
        logits_BTV = self._feed(
            [rows[b] for b in order],
            [slots[b] for b in order],
            tokens_BT[order_B],
            [counts[b] for b in order],
            [parents[b] for b in order] if parents else None,
        )
        return logits_BTV[order_B.argsort()]

    def commit(self, rows: list[int], kept: list[Kept]) -> None:
        """Set the cursors; move the nodes of a path that is not a prefix of the fed nodes."""
        with self.clock.stage("align"):
            self._contents.require(rows, "commit")
            for row, keep in zip(rows, kept, strict=True):
                before = self._contents[row].length
                stay, nodes = self._contents[row].keep(keep)
                self._prefixes.cut(row, stay)
                stay -= self.shared_length(row)
                if nodes and nodes[-1] >= len(nodes):  # nodes ascend, so only then is one left out
                    data_NHSD = self._slots.kv.data_NBHSD[:, self._slots.slot[row]]
                    columns = to_device(nodes, self.model.device) + stay
                    data_NHSD[:, :, stay : stay + len(nodes)] = data_NHSD[:, :, columns]
                if self._checkpoints is not None:
                    start = self._checkpoints.keep(row, before, stay, nodes)
                    if start is not None:
                        self._compute_again(row, start)

    def length(self, row: int) -> int:
        return self._contents[row].length

    def content(self, row: int) -> Tensor:
        num_own = self._contents[row].length - self.shared_length(row)
        own_NHSD, shared_NHSD = self._slots.kv.data_NBHSD[:, self._slots.slot[row]], self._prefixes.content(row)
        own_NHSD = own_NHSD[:, :, :num_own]
        return own_NHSD.clone() if shared_NHSD is None else torch.cat([shared_NHSD, own_NHSD], dim=2)

    def _feed(
        self,
        rows: list[int],
        slots: list[int],
        tokens_BT: Tensor,
        counts: list[int],
        parents: list[list[int]] | None,
    ) -> Tensor:
        """Feed rows in the model's order."""
        contents = [self._contents[row] for row in rows]
        lengths = [content.length - self.shared_length(row) for row, content in zip(rows, contents, strict=True)]
        starts = [length + len(content.parents) for length, content in zip(lengths, contents, strict=True)]
        positions, shared = self._contents.feed(rows, counts, parents), self._prefixes.of(rows)
        states = None if self._checkpoints is None else self._checkpoints.step(rows, contents, tokens_BT, counts)
        if all(content.is_chain() for content in contents):
            if shared is not None:
                return feed_chains(self.model, self._slots.kv, slots, starts, tokens_BT, counts, shared=shared)
            return self._feed_chains(slots, starts, tokens_BT, counts, states)
        num_new = tokens_BT.shape[1]
        num_columns = max(starts) + num_new
        mask_BTS = attention_mask(
            committed_BS=consecutive([0] * len(rows), lengths, num_columns, self.model.device),
            contents=contents,
            node_columns=[list(range(n, n + len(c.parents))) for n, c in zip(lengths, contents, strict=True)],
            num_tokens=counts,
            num_new=num_new,
        )
        positions_BT = padded(positions, self.model.device, num_new)
        writer = self._slots.kv.scatter(slots, starts, num_new, shared)
        mask_BTS = mask_BTS if shared is None else shared.mask(mask_BTS)
        real_BT = real_tokens(counts, num_new, self.model.device)
        return self.model.forward(tokens_BT, positions_BT, mask_BTS, writer, real_BT=real_BT, states=states)

    def _feed_parts(self, rows: list[int], tokens_BT: Tensor, counts: list[int], num_logits: int = 0) -> Tensor:
        """Feed long chains to a model with recurrent states, without padding; returns what is wanted of every token."""
        assert self._checkpoints is not None
        outputs_BTX = None
        for members, start, stop in self._checkpoints.parts(counts):
            fed = [rows[b] for b in members]
            contents, slots = [self._contents[row] for row in fed], [self._slots.slot[row] for row in fed]
            starts = [content.length + len(content.parents) for content in contents]
            members_M, lengths = to_device(members, self.model.device), [stop - start] * len(members)
            part_BT = tokens_BT[members_M, start:stop]
            self._contents.feed(fed, lengths, None)
            states = self._checkpoints.chunk(fed, contents, part_BT, first=not start)
            out = feed_chains(self.model, self._slots.kv, slots, starts, part_BT, lengths, num_logits, states=states)
            if outputs_BTX is None:
                outputs_BTX = out.new_zeros(*tokens_BT.shape[:2], out.shape[-1])
            if not num_logits:
                outputs_BTX[members_M, start:stop] = out
        assert outputs_BTX is not None
        return outputs_BTX

    def _compute_again(self, row: int, start: int) -> None:
        """Feed a row's committed tokens from ``start`` on again, for its recurrent state; its keys stay the same."""
        assert self._checkpoints is not None
        tokens_1T = self._checkpoints.tokens(row, start, self._contents[row].length)
        if num_new := tokens_1T.shape[1]:
            states, slots = self._checkpoints.again(row, num_new), [self._slots.slot[row]]
            feed_chains(self.model, self._slots.kv, slots, [start], tokens_1T, [num_new], 1, states=states)

    def _feed_chains(
        self,
        slots: list[int],
        starts: list[int],
        tokens_BT: Tensor,
        counts: list[int],
        states: StateFeed | None = None,
    ) -> Tensor:
        """Feed chains, with padding tokens for each idle slot between the rows' if that is cheaper than a copy.

        The padding goes past the row's cursor, as that of a short row does. Its positions do not exceed those of the
        fed rows, because some rotary embeddings depend on the largest position of a forward.
        """
        num_new = tokens_BT.shape[1]
        span_starts = self._span_starts(slots, starts, num_new)
        if span_starts is None:
            return feed_chains(self.model, self._slots.kv, slots, starts, tokens_BT, counts, states=states)
        span = list(range(slots[0], slots[-1] + 1))
        places_B = to_device(slots, self.model.device) - span[0]
        span_BT = tokens_BT.new_zeros(len(span), *tokens_BT.shape[1:])  # (B, T, D) where embeddings are fed
        span_BT[places_B] = tokens_BT
        span_counts = [0] * len(span)
        for slot, count in zip(slots, counts, strict=True):
            span_counts[slot - span[0]] = count
        longest = max(starts) + num_new
        logits = feed_chains(self.model, self._slots.kv, span, span_starts, span_BT, span_counts, num_positions=longest)
        return logits[places_B]

    def _span_starts(self, slots: list[int], starts: list[int], num_new: int) -> list[int] | None:
        """Cursors of all slots from the first fed one to the last; None if idle slots are better left out."""
        num_idle = slots[-1] + 1 - slots[0] - len(slots)
        if not num_idle or self.model.execution.ragged or self.model.recurrent:
            return None
        span = range(slots[0], slots[-1] + 1)
        start_of = {
            self._slots.slot[row]: c.length + len(c.parents) - self.shared_length(row)
            for row, c in self._contents.items()
        }
        start_of.update(zip(slots, starts, strict=True))
        span_starts = [start_of.get(slot, 0) for slot in span]
        num_columns, with_idle = max(starts) + num_new, max(span_starts) + num_new
        grows = with_idle > max(num_columns, self._slots.kv.data_NBHSD.shape[3])
        if grows or not idle_are_cheap(self.model, len(slots), num_idle, num_new, num_columns, with_idle):
            return None
        return span_starts
