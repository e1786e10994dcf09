"""The tree of shared first tokens: several levels, each held once and as long as it is read; planted bugs."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from cases import short_only
from harness import fresh, the_model
from hypothesis import given, settings
from hypothesis import strategies as st
from test_shared_prefixes import PREFIX, SHARED, tree_of_prompts

from specdec.alignment import prefix_tree
from specdec.alignment.own_columns import OwnColumns
from specdec.alignment.prefix_tree import Part, PrefixTree, common, shared_parts
from specdec.alignment.prefixes import Prefixes
from specdec.conformance.calls import check_program
from specdec.conformance.models import on_device
from specdec.conformance.programs import sharing_programs
from specdec.core.clock import Clock
from specdec.models.execution import parts
from specdec.models.execution.parts import Part as Attended
from specdec.models.kv import KVStorage
from specdec.models.shared import SharedColumns


def test_every_level_is_computed_and_kept_once():
    """Rows that come one by one, or together: the same tree; no token of it is computed twice."""
    model, fed, rows = the_model(), [], tree_of_prompts()
    model.observers.append(lambda _, call: fed.append(call.tokens_BT.numel()) or call)
    together, apart = SHARED(model, Clock()), SHARED(model, Clock())
    together.admit([0, 1, 2, 3, 4, 5], rows)
    assert fed == [20, 30, 10, 12], "20, 30 and 10 shared tokens, two of six rows"
    fed.clear()
    for row in (0, 5, 2, 1, 4, 3):
        apart.admit([row], [rows[row]])
    model.observers.clear()
    assert fed == [61, 2, 1, 2, 1, 2]
    for alignment in (together, apart):
        assert alignment._prefixes.num_columns == 60
        assert [alignment.shared_length(row) for row in range(6)] == [60, 60, 50, 50, 20, 20]
        for row in range(6):
            torch.testing.assert_close(alignment.content(row), fresh(*rows[row])[1], rtol=0, atol=1e-10)
    together.release([0, 1])
    together.admit([6], [[*rows[4][:20], 7]])
    assert together._prefixes.num_columns == 50, "nobody reads the last ten"
    together.release([2, 3])
    together.admit([7], [rows[2][:35]])
    assert together._prefixes.num_columns == 35, "of the second part, the first fifteen are read"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), max_size=7), min_size=1, max_size=6), st.integers(1, 3))
def test_what_two_contents_have_in_common_is_held_once_but_for_less_than_the_least(contents, least):
    ids, held = [np.array(content, dtype=np.int64) for content in contents], [0] * len(contents)
    for group, length in shared_parts(ids, held, least):
        assert len(group) > 1
        assert len({tuple(contents[b][:length]) for b in group}) == 1
        assert min(len(contents[b]) for b in group) >= length
        assert length - max(held[b] for b in group) >= least, "no part is shorter"
        for b in group:
            held[b] = length
    for a, b in itertools.combinations(range(len(ids)), 2):
        assert min(held[a], held[b]) > common(ids[a], ids[b]) - least


def _without_weights(first: Attended, second: Attended) -> Attended:
    return (first[0] + second[0]) / 2, torch.logaddexp(first[1], second[1])


def _frees(self: Prefixes, rows: list[int]) -> None:
    for row in rows:
        self._ids.pop(row, None)
        if (part := self._ends.pop(row, None)) is not None:
            part.kv.data_NBHSD.zero_()


def _from_the_first(self: SharedColumns, number: int) -> slice:
    return slice(0, min(self.storages[number].data_NBHSD.shape[3], self.width))


def _from_the_front(self: OwnColumns, row: int, first: int, last: int) -> KVStorage:
    return self.slots.kv.copied(self.slots.slot[row], 0, last - first)


SPLIT = PrefixTree.split


def _split_without_rows(self: PrefixTree, part: Part, at: int) -> Part:
    first = SPLIT(self, part, at)
    first.rows |= dict.fromkeys(part.rows, at)
    part.rows.clear()
    return first


def _frees_parts_above(self: PrefixTree, kept: Part | None) -> None:
    for part in self.parts():
        if not part.rows and not part.awaited:
            part.kv.data_NBHSD.zero_()


def _one_more(one: np.ndarray, other: np.ndarray) -> int:
    size = min(len(one), len(other))
    return min(size, common(one, other) + 1)


PLANTED = {
    "rows of a part that is split read its first tokens only": (PrefixTree, "split", _split_without_rows),
    "a part that no path ends in is freed": (PrefixTree, "prune", _frees_parts_above),
    "every level is read from the first position on": (SharedColumns, "positions", _from_the_first),
    "a part begins at the row's first own column": (OwnColumns, "copied", _from_the_front),
    "the merge has no weights": (parts, "merge", _without_weights),
    "a row that leaves frees the prefix of others": (Prefixes, "release", _frees),
    "a prefix may differ in its last token": (prefix_tree, "common", _one_more),
}


@pytest.mark.parametrize("bug", short_only(PLANTED, "the merge has no weights", ci=list(PLANTED)[:2]))
def test_planted_bugs_are_found(bug, monkeypatch):
    place, name, wrong = PLANTED[bug]
    monkeypatch.setattr(place, name, wrong)
    with on_device(torch.device("cpu"), "fused"):
        found = [
            broken for p in sharing_programs() for broken in check_program(p, make=partial(SHARED, shared_prefix=8))
        ]
    assert found


def test_a_thousand_rows_that_each_begin_the_next_are_grouped():
    ids = [np.arange(2, 2 + size) for size in range(1, 1201)]
    lengths = [length for _, length in shared_parts(ids, [0] * len(ids), 64)]
    assert lengths == list(range(64, 1200, 64))


def test_a_row_that_reads_less_than_what_is_split_goes_on_reading_it():
    """Row 2 reads 20 of 40 tokens; rows 3 and 4 leave them after 25, so that the part is split behind row 2's end."""
    alignment, other = SHARED(the_model(), Clock()), [(13 * i + 1) % 61 for i in range(20)]
    alignment.admit([0, 1], [[*PREFIX, 1], [*PREFIX, 2]])
    alignment.admit([2], [[*PREFIX[:20], 60]])
    alignment.admit([3, 4], [[*PREFIX[:25], *other, 3], [*PREFIX[:25], *other, 4]])
    assert [alignment.shared_length(row) for row in range(5)] == [40, 40, 20, 45, 45]
    assert alignment._prefixes.num_columns == 40 + 20
    alignment.release([0, 1, 3, 4])
    alignment.admit([5], [[9, 9]])
    assert alignment._prefixes.num_columns == 20, "what row 2 reads"
    torch.testing.assert_close(alignment.content(2), fresh(*PREFIX[:20], 60)[1], rtol=0, atol=1e-10)
    alignment.release([2])
    alignment.admit([6], [[8, 8]])
    assert alignment._prefixes.num_columns == 0
