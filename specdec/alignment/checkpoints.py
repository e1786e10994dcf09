"""The checkpoints of rows of a model with recurrent states: the state after every token fed since the last commit.

A commit makes the checkpoint of the last kept token the row's state and frees the others; nothing is copied or
computed again. A long chain, such as a part of a prompt, leaves a checkpoint after its last token only: if less of it
is kept, or a row is cut back into what was committed before, its state is computed again from the tokens.
Source: engines that serve hybrid models keep a state per drafted token too (vLLM and SGLang for Mamba 2 and gated
delta networks, for chains); here a node of a tree starts from its parent's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from specdec.alignment.content import Content
from specdec.core.transfer import to_device
from specdec.errors import ContractError
from specdec.models.causal_lm import CausalLM
from specdec.models.kv import GROWTH_COLUMNS
from specdec.models.states import StateFeed, StateStorage

MOST_STEPS = 64
"""Chains of up to so many tokens have a checkpoint after each; longer ones run in the chunked form."""


@dataclass(slots=True)
class _Row:
    """The slot of a row in the storage, and the places of its states there."""

    slot: int
    state: int = 0  # after the committed tokens
    nodes: dict[int, int] = field(default_factory=dict)  # after each node that has a checkpoint

    def of(self, node: int) -> int:
        """The place of the state after a node; -1 is the last committed token."""
        if node >= 0 and node not in self.nodes:
            raise ContractError(
                f"node {node} has no checkpoint, within a chain of more than {MOST_STEPS}: commit first"
            )
        return self.state if node < 0 else self.nodes[node]

    def free(self, count: int) -> list[int]:
        """The lowest places that hold nothing the row needs."""
        used = {self.state, *self.nodes.values()}
        return [place for place in range(len(used) + count) if place not in used][:count]


class Checkpoints:
    """Rows' states, and the tokens from which they can be computed again."""

    def __init__(self, model: CausalLM) -> None:
        self._device = model.device
        self._continues = model.architecture.states.continues
        self._storage = StateStorage(model.architecture.states, model.device)
        self._rows: dict[int, _Row] = {}
        self._tokens_SC = torch.zeros(0, 0, dtype=torch.long, device=model.device)  # of each slot, committed and fed

    def expect(self, num_rows: int) -> None:
        """Reserve room for new rows."""
        self._storage.reserve(len(self._rows) + num_rows, 1)

    def admit(self, rows: list[int]) -> None:
        """Give new rows the state before a first token."""
        taken = {row.slot for row in self._rows.values()}
        free = [slot for slot in range(len(taken) + len(rows)) if slot not in taken][: len(rows)]
        self._storage.reserve(max(free, default=-1) + 1, 1)
        for row, slot in zip(rows, free, strict=True):
            self._rows[row] = _Row(slot)
            self._storage.clear(slot, 0)

    def release(self, rows: list[int]) -> None:
        """Free the rows' slots."""
        for row in rows:
            del self._rows[row]

    def runs_chunked(self, contents: list[Content], counts: list[int]) -> bool:
        """Whether chains of these lengths run in the chunked form, which leaves no checkpoints within them."""
        from_zero = all(content.length + len(content.parents) == 0 for content in contents)
        return max(counts) > MOST_STEPS and (self._continues or from_zero)

    def parts(self, counts: list[int]) -> list[tuple[list[int], int, int]]:
        """Chains of different lengths in parts without padding: which of them feed their tokens from start to stop.

        A part ends where the shortest chain that is left does, so that no row's state sees the padding of another row.
        Where the chunked form starts from zero only, chains of equal length are a part.
        """
        stops = sorted(set(counts) - {0})
        if not self._continues:
            return [([b for b, count in enumerate(counts) if count == stop], 0, stop) for stop in stops]
        starts = [0, *stops[:-1]]
        longer = [[b for b, count in enumerate(counts) if count >= stop] for stop in stops]
        return list(zip(longer, starts, stops, strict=True))

    def step(self, rows: list[int], contents: list[Content], tokens_BT: Tensor, counts: list[int]) -> StateFeed:
        """The feed of a forward that leaves a checkpoint after every token; ``contents`` know the new nodes already."""
        num_new = tokens_BT.shape[1]
        sources, targets = [], []
        for row, content, count in zip(rows, contents, counts, strict=True):
            of_row, first = self._rows[row], len(content.parents) - count
            places = of_row.free(num_new)  # padding leaves states too, where nothing is kept
            of_row.nodes.update(zip(range(first, first + count), places, strict=False))
            parents = [of_row.of(parent) for parent in content.parents[first:]]
            sources.append(parents + [of_row.state] * (num_new - count))
            targets.append(places)
        self._remember(rows, [c.length + len(c.parents) - n for c, n in zip(contents, counts, strict=True)], tokens_BT)
        return self._feed(rows, sources, targets, 1)

    def chunk(self, rows: list[int], contents: list[Content], tokens_BT: Tensor, first: bool) -> StateFeed:
        """The feed of a forward over a part of the rows' chains, T tokens each, which leaves the state after the last.

        ``contents`` know the new nodes already; ``first`` is whether the chains begin with this part.
        """
        num_new, sources, targets = tokens_BT.shape[1], [], []
        for row, content in zip(rows, contents, strict=True):
            of_row, last = self._rows[row], len(content.parents) - 1
            before = of_row.of(last - num_new)
            if not first:
                del of_row.nodes[last - num_new]
            of_row.nodes[last] = of_row.free(1)[0]
            sources.append([before])
            targets.append([of_row.nodes[last]])
        self._remember(rows, [content.length + len(content.parents) - num_new for content in contents], tokens_BT)
        return self._feed(rows, sources, targets, num_new)

    def again(self, row: int, num_new: int) -> StateFeed:
        """The feed of a forward that computes a row's state again, from the state that it has now."""
        place = self._rows[row].state
        return self._feed([row], [[place]], [[place]], num_new)

    def keep(self, row: int, before: int, stay: int, nodes: list[int]) -> int | None:
        """Go on from the last kept token; returns the number of tokens to compute again from, if it has no checkpoint.

        Args:
            before: committed tokens before this commit. stay: of these, those that stay. nodes: kept after them.
        """
        of_row, again = self._rows[row], None
        if stay < before:
            of_row.state, again = of_row.free(1)[0], 0
            self._storage.reserve(0, of_row.state + 1)
            self._storage.clear(of_row.slot, of_row.state)
        elif nodes and nodes[-1] in of_row.nodes:
            of_row.state = of_row.nodes[nodes[-1]]
            if nodes[-1] >= len(nodes):  # nodes ascend, so only then is one left out
                fed = to_device(nodes, self._device) + stay
                self._tokens_SC[of_row.slot, stay : stay + len(nodes)] = self._tokens_SC[of_row.slot, fed]
        elif nodes:
            again = stay
        of_row.nodes.clear()
        return again

    def tokens(self, row: int, start: int, stop: int) -> Tensor:
        """(1, T) ids of a row's tokens."""
        return self._tokens_SC[self._rows[row].slot, start:stop][None]

    def _feed(self, rows: list[int], sources: list[list[int]], targets: list[list[int]], width: int) -> StateFeed:
        self._storage.reserve(0, max(map(max, targets)) + 1)
        slots_B = to_device([self._rows[row].slot for row in rows], self._device)
        places_2NB = to_device([sources, targets], self._device).transpose(1, 2)
        return StateFeed(self._storage, slots_B, places_2NB[0], places_2NB[1], width)

    def _remember(self, rows: list[int], columns: list[int], tokens_BT: Tensor) -> None:
        """Keep the tokens of a forward, (B, T) from ``columns`` on."""
        slots, num_new = [self._rows[row].slot for row in rows], tokens_BT.shape[1]
        have, need = self._tokens_SC.shape, (max(slots) + 1, max(columns) + num_new)
        if need[0] > have[0] or need[1] > have[1]:
            size = max(have[0], need[0]), max(have[1], need[1] + GROWTH_COLUMNS)
            grown_SC = self._tokens_SC.new_zeros(*size)
            grown_SC[: have[0], : have[1]] = self._tokens_SC
            self._tokens_SC = grown_SC
        columns_BT = to_device(columns, self._device)[:, None] + torch.arange(num_new, device=self._device)
        self._tokens_SC[to_device(slots, self._device)[:, None], columns_BT] = tokens_BT
