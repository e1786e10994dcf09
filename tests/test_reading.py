"""Reading: rows of different lengths are read in groups that cost least."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.alignment.reader import groups_of_length


def cost(lengths, groups, fixed):
    return sum(fixed + len(group) * max(lengths[i] for i in group) for group in groups)


def test_rows_of_one_length_are_one_group():
    assert groups_of_length([7] * 5, 1) == [[0, 1, 2, 3, 4]]
    assert groups_of_length([], 1) == []


def test_a_long_prompt_does_not_pad_the_short_ones():
    assert groups_of_length([20, 300, 16, 12], 32) == [[1], [0, 2, 3]]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 50))
def test_no_other_grouping_is_cheaper(lengths, fixed):
    groups = groups_of_length(lengths, fixed)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    others = []
    for labels in product(range(len(lengths)), repeat=len(lengths)):
        parts: dict[int, list[int]] = {}
        for i, label in enumerate(labels):
            parts.setdefault(label, []).append(i)
        others.append(cost(lengths, parts.values(), fixed))
    assert cost(lengths, groups, fixed) == min(others)
