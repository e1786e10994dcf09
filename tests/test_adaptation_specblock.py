"""SpecBlock heads that learn while they serve: the rank head or all of it, and rounds that are counted over trees."""

from __future__ import annotations

import re

import pytest
import torch
from test_adaptation import decoded, engine_of

from specdec.conformance.models import small_pair
from specdec.core.sequence import Sequence
from specdec.errors import ConfigError
from specdec.training.online import DRAFTER, Lessons
from specdec.training.online_specblock import RANK_HEAD


def test_the_rank_head_alone_is_learned_and_its_trees_are_counted():
    """The other arm of SpecBlock's bandit: no other weight moves, its loss falls, and trees hold other tokens."""
    target, draft = small_pair(1, "float32")
    engine = engine_of(target, draft, "specblock of trees", 1, "greedy", lr=0.02, rows=10**6)
    decoded(engine, [Sequence(i, [3, 1 + i, 4], 40) for i in range(3)])
    learner, rows = engine.drafter.learner, engine.drafter._feedback.take()
    assert learner.arms == (RANK_HEAD, DRAFTER)
    lessons, before, state = Lessons.of(rows, learner.device), learner.num_rounds(rows), learner._state()

    def loss():
        learner._num_updates = 0  # the same blocks
        return float(learner.loss(lessons, RANK_HEAD).detach())

    first = loss()
    for _ in range(20):
        learner.update(RANK_HEAD, rows)
    assert loss() < 0.8 * first
    assert {name for name, t in learner._state().items() if not torch.equal(t, state[name])} == {
        "rank_head.weight",
        "rank_head.bias",
    }
    again = [Sequence(10 + i, [3, 1 + i, 4], 40) for i in range(3)]
    decoded(engine, again)
    assert learner.num_rounds(rows) == [len(row.accepted_lengths) for row in again] != before


def test_rows_are_drafted_again_to_the_depths_that_they_had(monkeypatch):
    """Rows that stop early too: a tree of another depth holds other nodes."""
    target, draft = small_pair(0, "float32")
    engine = engine_of(target, draft, "specblock of trees", 2, "greedy", rows=10**6)
    asked: dict[int, list[int]] = {}

    def propose(rows, gammas, inner=engine.drafter.inner.propose):
        for row, gamma in zip(rows, gammas, strict=True):
            asked.setdefault(row.index, []).append(gamma)
        return inner(rows, gammas)

    monkeypatch.setattr(engine.drafter.inner, "propose", propose)
    rows = [Sequence(i, [1 + i, 3, 2 + i, 1], 9, frozenset({5, 8, 9})) for i in range(8)]
    decoded(engine, rows)
    served = engine.drafter._feedback.take()
    assert any(row.num_more for row in served)
    engine.drafter.learner.num_rounds(served)
    places = {tuple(row.ids): -1 - number for number, row in enumerate(served)}
    assert [asked[places[tuple(row.tokens(0))]] for row in rows] == [asked[row.index] for row in rows]


def test_one_part_alone_may_be_asked_for():
    target, draft = small_pair(1, "float32")
    engine = engine_of(target, draft, "specblock of trees", 1, "greedy", arm=RANK_HEAD, lr=0.01)
    learned = decoded(engine, [Sequence(i, [3, 1, 4], 4) for i in range(3)])
    assert [arm for arm, _ in learned] == [RANK_HEAD] * 2
    with pytest.raises(ConfigError, match=r"adapt\.arm=rank_head: it shapes trees: set drafter\.nodes"):
        engine_of(target, draft, "specblock", 1, "greedy", arm=RANK_HEAD)
    with pytest.raises(ConfigError, match=re.escape("unknown adapt.arm 'half': choose from drafter, null")):
        engine_of(target, draft, "specblock", 1, "greedy", arm="half")
