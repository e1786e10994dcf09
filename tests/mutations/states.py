"""Bugs in the recurrent states of rows: which checkpoint a row goes on from, and what has run through it."""

from __future__ import annotations

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
    def keep(original, self, row, before, stay, nodes):
        of_row = self._rows[row]
        early = of_row.nodes.get(nodes[-2]) if len(nodes) > 1 else None
        again = original(self, row, before, stay, nodes)
        of_row.state = of_row.state if early is None else early
        return again

    wrapped(patch, Checkpoints, "keep", keep)


@planted(INPLACE, "the state is restored one token late", "logits", STATES)
def restored_late(patch: Patch):
    def keep(original, self, row, before, stay, nodes):
        of_row = self._rows[row]
        late = of_row.nodes.get(nodes[-1] + 1) if nodes else None
        again = original(self, row, before, stay, nodes)
        of_row.state = of_row.state if late is None else late
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
