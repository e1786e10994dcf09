"""Which tokens of an output stand in loops, and the acceptance there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.core.loops import in_loops, loop_figures
from specdec.run.summary import levels


def by_definition(tokens: list[int]) -> list[bool]:
    """Every stretch of every period, tried one by one."""
    found = [False] * len(tokens)
    for period in range(1, 9):
        for start in range(len(tokens)):
            for end in range(start + max(12, 3 * period), len(tokens) + 1):
                if all(tokens[i] == tokens[i - period] for i in range(start + period, end)):
                    found[start:end] = [True] * (end - start)
    return found


@given(
    st.lists(
        st.one_of(
            st.lists(st.integers(0, 3), max_size=6),
            st.builds(
                lambda unit, times: unit * times,
                st.lists(st.integers(0, 9), min_size=1, max_size=10),
                st.integers(1, 14),
            ),
        ),
        max_size=4,
    )
)
def test_loops_are_those_of_the_definition(parts):
    tokens = [token for part in parts for token in part][:60]
    assert in_loops(tokens) == by_definition(tokens)


def test_acceptance_is_counted_by_where_a_round_starts():
    """Row 0 loops from its token 3 on; its second attempt counts from the start again."""
    outputs = {0: [5, 6, 7, *[1, 2] * 8], 1: list(range(20, 39))}
    rounds = [
        {"attempt": 1, "rows": [0, 1], "num_accepted": [2, 1], "depth": [4, 4], "num_emitted": [3, 2]},
        {"attempt": 1, "rows": [0], "num_accepted": [4], "depth": [4], "num_emitted": [5]},
        {"attempt": 2, "rows": [0], "num_accepted": [2], "depth": [4], "num_emitted": [3]},
        {"attempt": 2, "rows": [0, 1], "num_accepted": [3, 0], "depth": [4, 2], "num_emitted": [4, 1]},
    ]
    found = loop_figures(outputs, levels(rounds))
    assert found["loop_share"] == pytest.approx(16 / 38)
    assert found["acceptance_in_loops"] == pytest.approx(7 / 8)
    assert found["acceptance_outside_loops"] == pytest.approx((2 + 1 + 2 + 0) / (4 + 4 + 4 + 2))
    assert loop_figures({0: []}, []) == dict.fromkeys(found)
