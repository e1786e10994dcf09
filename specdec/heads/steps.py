"""Drafting by steps over the target's hidden states: EAGLE, EAGLE-2, EAGLE-3 and MTP.

Entry t of a head's own cache is made of (token t + 1, the target's hidden states of token t); its output predicts token
t + 2. Past what the target has verified, the head continues from its own outputs, each node from its parent's: step s
after entry t stands at position t + s and attends to the entries and nodes before it. A commit drops the entries of
drafted tokens; the next round feeds the true ones.
Shape letters: B rows, T entries fed, N nodes of a level, H the target's hidden states, D the head's states, X what the
head's layers are fed, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from specdec.alignment.base import Alignment
from specdec.alignment.layout import padded
from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.core.transfer import to_device
from specdec.drafters.base import Drafter
from specdec.drafters.chain import chosen_chains
from specdec.drafters.context import DrafterContext
from specdec.drafters.last_fed import last_fed
from specdec.drafters.memory import DrafterMemory
from specdec.drafters.selection import Selection, shapes_of
from specdec.heads.layers import STATES
from specdec.models.causal_lm import CausalLM
from specdec.registry import create
from specdec.trees.frontier import Workspace, by_place
from specdec.trees.growth import Growth

MAX_ENTRIES = 512
"""Entries of a row in one forward: the masks of a long prompt would take its length squared."""


class Stepping(ABC):
    """A head that continues from its own states."""

    hidden_layers: tuple[int, ...]
    model: CausalLM  # from vectors (B, T, X) to states (B, T, D)
    embed: Callable[[Tensor], Tensor]  # embeddings (..., D) of ids

    @abstractmethod
    def features(self, hidden_BTH: Tensor) -> Tensor:
        """(B, T, D): the target's hidden states in the form of the head's own."""

    @abstractmethod
    def inputs(self, embeds_BTD: Tensor, features_BTD: Tensor) -> Tensor:
        """(B, T, X): what the layers are fed."""

    @abstractmethod
    def logits(self, states: Tensor) -> Tensor:
        """(..., V) of states (..., D)."""


class UnreadStates:
    """The target's hidden states of tokens that a head has not read yet, per row."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._parts: dict[int, list[Tensor]] = {}  # (T, H) each

    def admit(self, rows: list[Sequence]) -> None:
        """Take new rows in."""
        self._parts.update((row.index, []) for row in rows)

    def release(self, rows: list[Sequence]) -> None:
        """Drop rows."""
        for row in rows:
            del self._parts[row.index]

    def observe(self, rows: list[Sequence], hidden_BTH: Tensor, kept: list[list[int]]) -> None:
        """Keep what `Drafter.observe_hidden` is told."""
        for b, row in enumerate(rows):
            first, last = kept[b][0], kept[b][-1]
            chain = last - first + 1 == len(kept[b])
            # A copy: a view would keep the logits in the same tensor alive for as long as nothing is drafted.
            self._parts[row.index].append(
                hidden_BTH[b, first : last + 1].clone() if chain else hidden_BTH[b, to_device(kept[b], self._device)]
            )

    def knows(self, row: Sequence) -> bool:
        """Whether there are any of a row."""
        return bool(self._parts[row.index])

    def take(self, row: Sequence) -> Tensor:
        """(T, H): all of a row's, which are forgotten."""
        parts, self._parts[row.index] = self._parts[row.index], []
        return torch.cat(parts)


@dataclass(frozen=True, slots=True)
class Unread:
    """Entries that are fed next: each row's first ``counts[b]``."""

    tokens_BT: Tensor
    hidden_BTH: Tensor
    counts: list[int]

    @classmethod
    def of(cls, rows: list[Sequence], hidden: list[Tensor], counts: list[int], device: torch.device) -> Unread:
        """The first of each row's hidden states (T, H) that it has up to now, with the tokens that followed them."""
        tokens = [row.tokens(row.length - len(part))[:n] for row, part, n in zip(rows, hidden, counts, strict=True)]
        parts = [part[:n] for part, n in zip(hidden, counts, strict=True)]
        return cls(padded(tokens, device), nn.utils.rnn.pad_sequence(parts, batch_first=True), counts)


class StepDrafter(Drafter):
    """Trees of any depth, one forward of the head per level for all rows and nodes."""

    def __init__(self, context: DrafterContext, head: Stepping) -> None:
        self.head, self.hidden_layers = head, head.hidden_layers
        self._device, self._tree, self._memory = context.device, context.tree, Workspace()
        self.siblings, self.max_length = context.tree.siblings, context.tree.max_depth
        self._selection = None if context.selector is None else Selection(context.selector)
        # Always inplace, whatever the target's alignment: other strategies may feed tokens again, and need their ids.
        self._cache: Alignment = create("alignment", "inplace", head.model, context.clock)
        self._unread = UnreadStates(context.device)
        width = len(head.hidden_layers) * context.target.architecture.hidden_size
        self._nothing = torch.empty(0, width, dtype=context.target.dtype, device=context.device)
        self._true: dict[int, int] = {}  # of the rows of this round: entries made of committed tokens alone

    @property
    def memory(self) -> DrafterMemory:
        return DrafterMemory(self.head.model, type(self._cache), hidden_chunk=MAX_ENTRIES)

    def prepare(self, batch: int) -> None:
        if self._selection:
            self._selection.selector.prepare(batch)

    def admit(self, rows: list[Sequence]) -> None:
        """Empty caches: the entries of the prompts are made of what ``observe_hidden`` brings."""
        self._cache.admit([row.index for row in rows], [[] for _ in rows])
        self._unread.admit(rows)

    def observe_hidden(self, rows: list[Sequence], hidden_BTD: Tensor, kept: list[list[int]]) -> None:
        self._unread.observe(rows, hidden_BTD, kept)

    @torch.inference_mode()
    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        """Feed the new hidden states, then continue from the head's own outputs."""
        keys = [row.index for row in rows]
        counts = [gamma if row.length > 1 else 0 for row, gamma in zip(rows, gammas, strict=True)]
        if not any(counts):
            return chosen_chains([[] for _ in rows], self._device)
        new = self._take(rows, [count > 0 for count in counts])
        choose = shapes_of(self._selection, self._tree, self.width, counts)
        growth = Growth(self._tree, rows, counts, new.counts, self._memory, choose, self.reports_certainty)
        states_BTD = self._forward(keys, new.tokens_BT, self.head.features(new.hidden_BTH), new.counts)
        states_BND = last_fed(states_BTD, new.counts)[:, None]
        while (feed := growth.add(self.head.logits(states_BND))) is not None:
            states_BND = self._forward(
                keys, feed.tokens_BN, by_place(states_BND, feed.places_BN), feed.counts, feed.parents
            )
        return growth.draft()

    def commit(self, rows: list[Sequence]) -> None:
        fed = [row.index for row in rows if row.index in self._true]
        if fed:
            self._cache.commit(fed, [self._true[key] for key in fed])
        self._true = {}

    def release(self, rows: list[Sequence]) -> None:
        self._cache.release([row.index for row in rows])
        self._unread.release(rows)
        for row in rows:
            self._true.pop(row.index, None)
        if self._selection:
            self._selection.release(rows)

    def _take(self, rows: list[Sequence], drafting: list[bool]) -> Unread:
        """What the rows that draft have not read; of very much, all but the rest is fed and committed here."""
        keys = [row.index for row in rows]
        new = [self._unread.take(row) if drafts else self._nothing for row, drafts in zip(rows, drafting, strict=True)]
        while max(map(len, new)) > MAX_ENTRIES:
            fed = [min(max(len(part) - MAX_ENTRIES, 0), MAX_ENTRIES) for part in new]
            part = Unread.of(rows, new, fed, self._device)
            self._forward(keys, part.tokens_BT, self.head.features(part.hidden_BTH), fed)
            self._cache.commit(keys, [self._cache.length(key) + n for key, n in zip(keys, fed, strict=True)])
            new = [part[n:] for part, n in zip(new, fed, strict=True)]
        fed = list(map(len, new))
        self._true = {key: self._cache.length(key) + n for key, n in zip(keys, fed, strict=True) if n}
        return Unread.of(rows, new, fed, self._device)

    def _forward(
        self,
        keys: list[int],
        tokens_BT: Tensor,
        features_BTD: Tensor,
        fed: list[int],
        parents: list[list[int]] | None = None,
    ) -> Tensor:
        """Feed entries; returns the state (B, T, D) of each."""
        return self._feed(keys, self.head.inputs(self.head.embed(tokens_BT), features_BTD), fed, parents)

    def _feed(
        self, keys: list[int], inputs_BTX: Tensor, fed: list[int], parents: list[list[int]] | None = None
    ) -> Tensor:
        with self.head.model.call_options(STATES):
            return self._cache.forward(keys, inputs_BTX, fed, parents)
