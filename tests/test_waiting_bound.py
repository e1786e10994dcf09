"""EXSPEC's waiting bound: no row of the window is passed over for longer than was said."""

from __future__ import annotations

import random

import pytest
from harness import make_engine
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.core.sequence import Sequence, SequencePool
from specdec.errors import ConfigError
from specdec.schedulers.exspec import ExspecScheduler


def longest_waits(scheduler: ExspecScheduler, prompts: list[int], growth: random.Random, budget: int) -> dict[int, int]:
    """Run the scheduler over rows that grow at random; per row, the most rounds that passed it over in the window."""
    rows = [Sequence(i, [0] * length, budget) for i, length in enumerate(prompts)]
    pool, waited, longest = SequencePool(rows), {}, {}
    while not pool.done:
        chosen = scheduler.select(pool)
        assert 0 < len(chosen) <= scheduler.batch
        assert len({row.index for row in chosen}) == len(chosen)
        assert all(row in pool.active for row in chosen)
        for row in pool.active:
            waited[row.index] = 0 if row in chosen else waited.get(row.index, 0) + 1
            longest[row.index] = max(longest.get(row.index, 0), waited[row.index])
        for row in chosen:
            row.emit([0] * growth.randint(1, 6))
        pool.retire()
    return longest


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=40),
    st.integers(1, 5),
    st.integers(0, 12),
    st.integers(0, 6),
    st.integers(0, 2**16),
)
def test_no_row_of_the_window_waits_for_longer_than_the_bound(prompts, batch, extra, slack, seed):
    window = batch + extra
    bound = -(-window // batch) - 1 + slack
    scheduler = ExspecScheduler(batch, window, max_wait_rounds=bound)
    assert max(longest_waits(scheduler, prompts, random.Random(seed), budget=20).values()) <= bound


def test_without_the_bound_a_row_without_partners_waits_for_the_others():
    """One row of another length among many that stay equal: they run to their end first."""
    prompts = [7, *[3] * 15]

    class Steady(random.Random):
        def randint(self, a: int, b: int) -> int:
            return 1

    free = longest_waits(ExspecScheduler(2, 16), prompts, Steady(), budget=20)
    bound = longest_waits(ExspecScheduler(2, 16, max_wait_rounds=8), prompts, Steady(), budget=20)
    assert free[0] > 50
    assert max(bound.values()) == 8


def test_a_loose_bound_changes_nothing():
    prompts = [random.Random(1).randint(1, 9) for _ in range(30)]
    free = longest_waits(ExspecScheduler(3, 9), prompts, random.Random(5), budget=20)
    assert longest_waits(ExspecScheduler(3, 9, max_wait_rounds=10_000), prompts, random.Random(5), budget=20) == free


def test_a_bound_that_cannot_be_kept_is_refused():
    with pytest.raises(ConfigError, match=r"max_wait_rounds=10 cannot be kept.*11 or more.*window=44 or less"):
        ExspecScheduler(4, 48, max_wait_rounds=10)
    ExspecScheduler(4, 44, max_wait_rounds=10)


def test_the_bound_does_not_change_outputs(target, draft, prompts):
    wanted = None
    for bound in (None, 2):
        engine = make_engine(target, draft, scheduler="exspec", batch=4, window=8, max_wait_rounds=bound)
        rows = [Sequence(i, list(prompt), 8) for i, prompt in enumerate(prompts)]
        pool = SequencePool(rows)
        while not pool.done:
            engine.step(pool)
        wanted = wanted or [row.output_ids for row in rows]
        assert [row.output_ids for row in rows] == wanted
