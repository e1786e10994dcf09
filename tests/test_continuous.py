"""Continuous batches: places are refilled at once, prompts are read in chunks, and no output notices."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from cases import short_only
from conftest import VOCAB, greedy_alone
from harness import ALIGNMENTS, make_engine, run_all

from specdec.core.round import Round
from specdec.core.sequence import Sequence, SequencePool
from specdec.engine.prefill import FIRST_TOKENS, MIN_TOKENS, Prefill, PrefillBudget
from specdec.errors import ConfigError
from specdec.models.causal_lm import CausalLM
from specdec.schedulers.continuous import ContinuousScheduler

NEW = 16
BUDGETS = [1 + (5 * i) % NEW for i in range(9)]


@pytest.fixture(scope="module")
def long_prompts() -> list[list[int]]:
    """Some longer than a chunk, so that they are read over several rounds."""
    rng = random.Random(5)
    return [[rng.randrange(VOCAB) for _ in range(length)] for length in (90, 1, 40, 130, 7, 2, 70, 33, 110)]


@pytest.fixture(scope="module")
def expected(target: CausalLM, long_prompts: list[list[int]]) -> list[list[int]]:
    outputs = [greedy_alone(target, prompt, NEW, frozenset()) for prompt in long_prompts]
    return [output[:budget] for output, budget in zip(outputs, BUDGETS, strict=True)]


class SlowPrefill(Prefill):
    """Reading seems to take as long as is said here, so that the share bites whatever the machine."""

    def decoded(self, seconds: float) -> None:
        super().decoded(1e-4)


@pytest.mark.parametrize("gamma", short_only([0, 3], 3))
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_prompts_read_in_chunks_change_no_output(target, draft, long_prompts, expected, alignment, gamma):
    engine = make_engine(
        target, draft, scheduler="continuous", batch=3, gamma=gamma, alignment=ALIGNMENTS[alignment], prefill_share=0.2
    )
    engine.prefill = SlowPrefill(engine.target, engine.drafter, engine.clock, 0.2, None)
    rows, rounds = run_all(engine, long_prompts, BUDGETS)
    assert [row.output_ids for row in rows] == expected
    sitting_out = [outcome for outcome in rounds if len(outcome.rows) < 3]
    assert sitting_out, "while a prompt is read, the others go on"


@pytest.mark.parametrize("scheduler", ["static", "continuous", "exspec"])
def test_chunks_that_bound_the_memory_change_no_output(target, draft, long_prompts, expected, scheduler, monkeypatch):
    engine = make_engine(target, draft, scheduler=scheduler, batch=3, gamma=3)
    engine.prefill = Prefill(engine.target, engine.drafter, engine.clock, 1.0, 16)
    fed: list[int] = []
    forward = target.forward

    def watched(tokens_BT, *rest, **options):
        fed.append(tokens_BT.shape[1])
        return forward(tokens_BT, *rest, **options)

    monkeypatch.setattr(target, "forward", watched)
    rows, _ = run_all(engine, long_prompts, BUDGETS)
    assert [row.output_ids for row in rows] == expected
    assert max(fed) == 16


def test_a_finished_rows_place_is_taken_in_the_next_round(target, prompts):
    engine = make_engine(target, scheduler="continuous", batch=4, prefill_share=1.0)
    _, rounds = run_all(engine, prompts, [1 + 2 * i for i in range(len(prompts))])
    waiting = len(prompts) - 4
    for before, after in pairwise(rounds):
        newcomers = {row.index for row in after.rows} - {row.index for row in before.rows}
        assert len(newcomers) == min(len(before.finished), waiting)
        waiting -= len(newcomers)
    assert waiting == 0


def test_rows_that_decode_do_not_wait_for_a_whole_long_prompt(target):
    """With little time for it, a long prompt is read over many rounds, in which the other row emits."""
    long, short = [1] * 200, [2] * 3
    engine = make_engine(target, scheduler="continuous", batch=2, prefill_share=0.1)
    engine.prefill = SlowPrefill(engine.target, engine.drafter, engine.clock, 0.1, None)
    rows = [Sequence(0, short, 120), Sequence(1, short, 2), Sequence(2, long, 4)]
    pool = SequencePool(rows)
    rounds: list[Round] = []
    while not pool.done:
        rounds.append(engine.step(pool))
    before = [outcome for outcome in rounds if rows[1] not in outcome.rows and rows[2] not in outcome.rows]
    assert len(before) > 5
    assert all(outcome.rows == [rows[0]] for outcome in before)
    assert rows[2].output_ids == greedy_alone(target, long, 4, frozenset())


def test_the_budget_keeps_its_share():
    """Reading at 1 ms per token beside rounds of 20 ms, for a quarter of the time: after a while it takes a quarter."""
    budget, read_s, decode_s = PrefillBudget(0.25), 0.0, 0.0
    stalls = []
    for _ in range(400):
        tokens = budget.tokens()
        if tokens:
            budget.read(0.001 * tokens, tokens)
            stalls.append(tokens)
        read_s += 0.001 * tokens
        budget.decoded(0.020)
        decode_s += 0.020
    assert 0.15 < read_s / (read_s + decode_s) <= 0.26
    assert stalls[0] == FIRST_TOKENS
    assert stalls[-1] == MIN_TOKENS, "chunks shrink until they fit beside a round"


def test_the_budget_grows_where_reading_is_cheap():
    budget = PrefillBudget(0.5)
    for _ in range(6):
        budget.decoded(0.1)
        tokens = budget.tokens()
        budget.read(1e-5 * tokens, tokens)
    assert budget.tokens() > 16 * FIRST_TOKENS


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_a_share_that_makes_no_sense_is_refused(share):
    with pytest.raises(ConfigError, match=r"scheduler\.prefill_share="):
        ContinuousScheduler(4, 4, prefill_share=share)
