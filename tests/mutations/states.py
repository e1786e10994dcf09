"""Bugs in the recurrent states of rows: which checkpoint a row goes on from, and what has run through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mutations.planting import Patch, planted, wrapped
from specdec.alignment.checkpoints import Checkpoints
from specdec.conformance.suites import STATES
from specdec.models.states import StateStorage

INPLACE = "alignment=inplace"


@planted(INPLACE, "the state stays that of the last fed token, accepted or not", "logits", STATES)
def not_restored(patch: Patch):
    def keep(original, self, row, before, stay, nodes):
        of_row = self._rows[row]
        last = of_row.nodes[max(of_row.nodes)] if of_row.nodes else of_row.state
        again = original(self, row, before, stay, nodes)
        of_row.state = last if stay == before else of_row.state
        return again

    wrapped(patch, Checkpoints, "keep", keep)


@planted(INPLACE, "the state is restored one token early", "logits", STATES)
def restored_early(patch: Patch):
    _restored_from(patch, lambda nodes: nodes[-2:-1])


@planted(INPLACE, "the state is restored one token late", "logits", STATES)
def restored_late(patch: Patch):
    _restored_from(patch, lambda nodes: [node + 1 for node in nodes[-1:]])


def _restored_from(patch: Patch, other: Callable[[list[int]], list[int]]) -> None:
    """A row goes on from the checkpoint of another node, if it has that one."""

    def keep(original, self, row, before, stay, nodes):
        of_row = self._rows[row]
        wrong = [of_row.nodes[node] for node in other(nodes) if node in of_row.nodes]
        again = original(self, row, before, stay, nodes)
        of_row.state = wrong[0] if wrong else of_row.state
        return again

    wrapped(patch, Checkpoints, "keep", keep)


@planted(INPLACE, "prompts are padded to the longest, and the padding runs through the states", "logits", STATES)
def padding_in_states(patch: Patch):
    def keep(original, self, row, before, stay, nodes):
        fed = self._rows[row].nodes
        padded = nodes and nodes[-1] not in fed
        return original(self, row, before, stay, [*nodes[:-1], max(fed)] if padded else nodes)

    wrapped(patch, Checkpoints, "parts", lambda original, self, counts: [(list(range(len(counts))), 0, max(counts))])
    wrapped(patch, Checkpoints, "keep", keep)


@planted(INPLACE, "a new row starts from the state of the row that left its slot", "content", STATES)
def states_not_cleared(patch: Patch):
    patch.setattr(StateStorage, "clear", lambda self, slot, place: None)


@planted(INPLACE, "a node starts from the state of the node fed before it, not of its parent", "logits", STATES)
def parents_ignored(patch: Patch):
    def step(original, self, rows, contents, tokens_BT, counts):
        chains = [replace(content, parents=list(range(-1, len(content.parents) - 1))) for content in contents]
        return original(self, rows, chains, tokens_BT, counts)

    wrapped(patch, Checkpoints, "step", step)


@planted(INPLACE, "after a cut into committed tokens the state is not computed again", "logits", STATES)
def not_computed_again(patch: Patch):
    def keep(original, self, *arguments):
        original(self, *arguments)

    wrapped(patch, Checkpoints, "keep", keep)
