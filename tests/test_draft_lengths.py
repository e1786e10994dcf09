"""Draft-length policies other than goodput, and all of them on real engines."""

from __future__ import annotations

import pytest
from cases import short_only
from conftest import greedy_alone
from harness import ALIGNMENTS, make_engine, run_all

from specdec.core.sequence import Sequence
from specdec.draft_lengths.base import DraftLength
from specdec.draft_lengths.batch_table import BatchTableLength
from specdec.draft_lengths.profile import Profiler, Trial, best_gammas, powers_of_two
from specdec.errors import ConfigError


def trial(batch: int, gamma: int) -> Trial:
    """Drafting costs 1 per step, a verification grows with the batch's tokens beyond 32; 0.6 accepted of each."""
    reached = [round(1000 * 0.6**place) for place in range(gamma + 1)]
    return Trial(0.1 * gamma, max(1.0, batch * (gamma + 1) / 32), 1000, reached[:-1], reached[1:], 0.001)


def test_the_table_holds_the_argmin_of_time_per_token():
    sizes, gammas = [1, 2, 4, 8, 16, 32], [0, 1, 2, 4, 8]
    table = best_gammas({batch: {gamma: trial(batch, gamma) for gamma in gammas} for batch in sizes})

    def seconds_per_token(batch: int, gamma: int) -> float:
        exact = trial(batch, gamma)
        return (exact.draft_s + exact.verify_s) / (exact.num_accepted / 1000 + 1)

    for batch in sizes:
        best = min(seconds_per_token(batch, gamma) for gamma in gammas)
        assert seconds_per_token(batch, table[batch]) < 1.05 * best
    assert table[1] >= 3
    assert table[32] == 0, "where every token costs a token's time, nothing is drafted"
    assert [table[batch] for batch in sizes] == sorted(table.values(), reverse=True)


def test_a_table_is_profiled_once_and_shared_between_batch_sizes(tmp_path, capsys):
    runs: list[tuple[int, list[int]]] = []

    def run(batch: int, gammas: list[int]) -> dict[int, Trial]:
        runs.append((batch, gammas))
        return {gamma: trial(batch, gamma) for gamma in gammas}

    profiler = Profiler(run, tmp_path, lambda: {"pair": "x"})
    policy = BatchTableLength(max_gamma=4)
    with pytest.raises(ConfigError, match="no table yet"):
        policy.choose([Sequence(0, [1], 4)])
    policy.prepare(profiler, 6)
    assert runs == [(size, [0, 1, 2, 4]) for size in (1, 2, 4, 6)]
    out = capsys.readouterr().out
    assert "measuring draft lengths at batch size 1, 2, 4, 6, once per pair and device" in out
    assert "draft length by batch size, profiled now: 1: " in out
    rows = [Sequence(index, [1], 20) for index in range(6)]
    assert policy.choose(rows) == [policy.table[6]] * 6
    assert policy.choose(rows[:3]) == [policy.table[4]] * 3, "the next larger size"
    runs.clear()
    again = BatchTableLength(max_gamma=4)
    again.prepare(profiler, 8)
    assert [batch for batch, _ in runs] == [8]
    assert capsys.readouterr().out.count("profiled now") == 1
    BatchTableLength(max_gamma=4).prepare(profiler, 8)
    assert capsys.readouterr().out == ""
    runs.clear()
    BatchTableLength(max_gamma=6).prepare(profiler, 1)
    assert runs == [(1, [0, 1, 2, 4, 6])], "all lengths anew, so that one moment's are compared"
    other = Profiler(run, tmp_path, lambda: {"pair": "y"})
    runs.clear()
    BatchTableLength(max_gamma=4).prepare(other, 1)
    assert runs, "another pair has a table of its own"


@pytest.mark.parametrize(("limit", "sizes"), [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 5]), (8, [1, 2, 4, 8])])
def test_profiled_sizes(limit, sizes):
    assert powers_of_two(limit) == sizes


class Switching(DraftLength):
    """Drafts for some rounds, then not, then again."""

    def __init__(self) -> None:
        self.turn = 0

    def choose(self, rows: list[Sequence]) -> list[int]:
        self.turn += 1
        self.drafting = self.turn % 16 < 4
        return [3 * self.drafting] * len(rows)


@pytest.mark.parametrize("alignment", short_only(ALIGNMENTS, "inplace", ci=["masked"]))
def test_a_draft_that_was_off_catches_up_and_drafts_as_before(target, prompts, alignment):
    """With the target as its own draft every token is accepted, unless its cache lacks something."""
    engine = make_engine(target, target, scheduler="continuous", alignment=ALIGNMENTS[alignment], batch=3)
    engine.draft_length = Switching()
    rows, rounds = run_all(engine, prompts, 24)
    assert [row.output_ids for row in rows] == [greedy_alone(target, prompt, 24, frozenset()) for prompt in prompts]
    assert all(outcome.num_accepted == outcome.num_drafted for outcome in rounds)
    assert any(any(outcome.num_drafted) for outcome in rounds)


def test_rounds_without_a_draft_do_not_call_the_draft_model(target, draft, prompts):
    engine = make_engine(target, draft, scheduler="continuous", gamma=0)
    engine.draft_length.drafting = False
    calls = []
    draft.module.register_forward_pre_hook(lambda *args: calls.append(1))
    rows, _ = run_all(engine, prompts, 8)
    draft.module._forward_pre_hooks.clear()
    assert all(row.num_drafted == 0 for row in rows)
    assert not calls
