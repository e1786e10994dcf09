"""The engine against transformers' own greedy generation, one prompt at a time."""

from __future__ import annotations

import itertools
import random
import time
from functools import cache

import pytest
from cases import each_value, short_only
from conftest import VOCAB, greedy_alone
from harness import ALIGNMENTS, make_engine, run_all

from specdec.conformance.decoding import PatternDrafter
from specdec.core.sequence import Sequence, SequencePool
from specdec.draft_lengths.fixed import FixedLength
from specdec.models.causal_lm import CausalLM

NEW = 24
DTYPES = ["float64", "float32", "native"]


@pytest.fixture(scope="module")
def expected(target: CausalLM, prompts: list[list[int]]) -> list[list[int]]:
    return [alone(target, tuple(prompt)) for prompt in prompts]


@cache  # as the target is, in conftest.py
def alone(target: CausalLM, prompt: tuple[int, ...]) -> list[int]:
    return greedy_alone(target, list(prompt), NEW, frozenset())


def outputs(rows):
    return [row.output_ids for row in rows]


def test_outputs_vary(expected):
    """The oracle is only worth something if its outputs are not one repeated token."""
    assert sum(len(set(output)) > 6 for output in expected) >= 8


@pytest.mark.parametrize(
    ("dtype", "scheduler", "batch"),
    each_value(DTYPES, ["static", "continuous", "exspec"], [1, 3, 4]),
    indirect=["dtype"],
)
def test_plain_decoding_is_exact(target, prompts, expected, scheduler, batch):
    rows, _ = run_all(make_engine(target, scheduler=scheduler, batch=batch), prompts, NEW)
    assert outputs(rows) == expected


@pytest.mark.parametrize(
    ("dtype", "scheduler", "batch", "gamma"),
    each_value(DTYPES, ["static", "exspec"], [(1, 5), (3, 1), (4, 5), (5, 8), (11, 3)]),
    indirect=["dtype"],
)
def test_speculation_is_exact(target, draft, prompts, expected, scheduler, batch, gamma):
    engine = make_engine(target, draft, scheduler=scheduler, batch=batch, gamma=gamma)
    rows, rounds = run_all(engine, prompts, NEW)
    assert outputs(rows) == expected
    accepted = sum(sum(r.num_accepted) for r in rounds)
    drafted = sum(sum(r.num_drafted) for r in rounds)
    assert 0.1 < accepted / drafted < 0.9, "the draft must be right sometimes and wrong sometimes"


@pytest.mark.parametrize("scheduler", ["static", "exspec"])
@pytest.mark.parametrize("gamma", [1, 3, 5])
def test_draft_equal_to_target_accepts_everything(target, prompts, expected, scheduler, gamma):
    """A hole in the draft's cache would show as a draft that disagrees with itself."""
    engine = make_engine(target, target, scheduler=scheduler, gamma=gamma)
    rows, rounds = run_all(engine, prompts, 4 * (gamma + 1))
    assert outputs(rows) == [e[: 4 * (gamma + 1)] for e in expected]
    emitted = sum(sum(map(len, r.emitted)) for r in rounds)
    assert emitted / sum(len(r.rows) for r in rounds) == gamma + 1
    assert all(accepted == gamma for r in rounds for accepted in r.num_accepted)


PATTERNS = {
    "none": lambda row, turn: 0,
    "all": lambda row, turn: 99,
    "partial": lambda row, turn: (row + turn) % 5,
    "alternating": lambda row, turn: 99 * ((row + turn) % 2),
    "one row never, others always": lambda row, turn: 0 if row == 1 else 99,
    "random": lambda row, turn: random.Random(1000 * row + turn).randrange(7),
}


@pytest.mark.parametrize(
    ("dtype", "scheduler", "pattern"), each_value(DTYPES, ["static", "exspec"], list(PATTERNS)), indirect=["dtype"]
)
def test_every_acceptance_pattern(target, prompts, expected, scheduler, pattern):
    """Forced acceptance per row and round; the counts must be those that were forced."""
    gamma, script = 5, PATTERNS[pattern]
    known = [output + [0] * (gamma + 1) for output in expected]
    drafter = PatternDrafter(known, script)
    engine = make_engine(target, drafter=drafter, scheduler=scheduler, gamma=gamma)
    rows, _ = run_all(engine, prompts, NEW)
    assert outputs(rows) == expected
    for row in rows:
        left, forced = NEW, []
        for turn in itertools.count():
            if left == 0:
                break
            forced.append(min(script(row.index, turn), gamma, left - 1))
            left -= forced[-1] + 1
        assert row.accepted_lengths == forced


OTHERS = [name for name in ALIGNMENTS if name != "eqspec"]


@pytest.mark.parametrize(
    ("dtype", "scheduler", "batch", "gamma", "alignment"),
    each_value(DTYPES, ["static", "exspec"], [(1, 5), (4, 5), (11, 3)], OTHERS),
    indirect=["dtype"],
)
def test_speculation_is_exact_with_every_alignment(
    target, draft, prompts, expected, scheduler, batch, gamma, alignment
):
    engine = make_engine(
        target, draft, scheduler=scheduler, batch=batch, gamma=gamma, alignment=ALIGNMENTS[alignment], window=11
    )
    rows, _ = run_all(engine, prompts, NEW)
    assert outputs(rows) == expected


@pytest.mark.parametrize(
    ("dtype", "scheduler", "alignment"), each_value(DTYPES, ["static", "exspec"], OTHERS), indirect=["dtype"]
)
def test_draft_equal_to_target_accepts_everything_with_every_alignment(target, prompts, expected, scheduler, alignment):
    gamma = 3
    engine = make_engine(target, target, scheduler=scheduler, gamma=gamma, alignment=ALIGNMENTS[alignment])
    rows, rounds = run_all(engine, prompts, 4 * (gamma + 1))
    assert outputs(rows) == [e[: 4 * (gamma + 1)] for e in expected]
    assert all(accepted == gamma for r in rounds for accepted in r.num_accepted)


@pytest.mark.parametrize(
    ("dtype", "scheduler", "pattern", "alignment"),
    each_value(DTYPES, ["static", "exspec"], list(PATTERNS), OTHERS),
    indirect=["dtype"],
)
def test_every_acceptance_pattern_with_every_alignment(target, prompts, expected, scheduler, pattern, alignment):
    known = [output + [0] * 6 for output in expected]
    drafter = PatternDrafter(known, PATTERNS[pattern])
    engine = make_engine(target, drafter=drafter, scheduler=scheduler, gamma=5, alignment=ALIGNMENTS[alignment])
    rows, _ = run_all(engine, prompts, NEW)
    assert outputs(rows) == expected


@pytest.mark.parametrize("scheduler", ["static", "exspec"])
def test_a_row_near_its_budget_does_not_shorten_the_others(target, draft, prompts, expected, scheduler):
    budgets = [1 + (5 * i) % NEW for i in range(len(prompts))]
    engine = make_engine(target, draft, scheduler=scheduler, gamma=5)
    rows, rounds = run_all(engine, prompts, budgets)
    assert outputs(rows) == [output[:budget] for output, budget in zip(expected, budgets, strict=True)]
    done = dict.fromkeys(range(len(prompts)), 0)
    for outcome in rounds:
        for row, drafted, emitted in zip(outcome.rows, outcome.num_drafted, outcome.emitted, strict=True):
            assert drafted == min(5, budgets[row.index] - done[row.index] - 1)
            done[row.index] += len(emitted)


@pytest.mark.parametrize("gamma", [0, 5])
def test_max_new_tokens_of_one(target, draft, prompts, expected, gamma):
    rows, _ = run_all(make_engine(target, draft, gamma=gamma), prompts, 1)
    assert outputs(rows) == [output[:1] for output in expected]
    assert all(row.stop_reason == "length" for row in rows)


@pytest.mark.parametrize("scheduler", ["static", "exspec"])
def test_stop_tokens_cut_inside_an_accepted_block(target, prompts, expected, scheduler):
    """Several stop tokens; among them id 0, which is also the padding filler and occurs in the prompts."""
    stop_ids = frozenset({0, expected[1][3], expected[3][10], expected[6][2]})
    assert any(0 in prompt for prompt in prompts)
    wanted = [greedy_alone(target, prompt, NEW, stop_ids) for prompt in prompts]
    assert len({len(output) for output in wanted}) > 2
    engine = make_engine(target, target, scheduler=scheduler, gamma=5)
    rows, rounds = run_all(engine, prompts, NEW, stop_ids)
    assert outputs(rows) == wanted
    for row in rows:
        assert row.stop_reason == ("stop" if row.output_ids[-1] in stop_ids else "length")
        assert not set(row.output_ids[:-1]) & stop_ids
    assert sum(sum(map(len, r.emitted)) for r in rounds) == sum(map(len, wanted))


def test_one_row_stops_in_the_first_round(target, prompts, expected):
    """The others go on, and the finished row costs no further place in a round."""
    stop_ids = frozenset({expected[2][0]})
    wanted = [greedy_alone(target, prompt, NEW, stop_ids) for prompt in prompts[:4]]
    assert len(wanted[2]) == 1
    assert max(map(len, wanted)) > 6
    rows, rounds = run_all(make_engine(target, target, gamma=2), prompts[:4], NEW, stop_ids)
    assert outputs(rows) == wanted
    assert all(row.index != 2 for outcome in rounds[1:] for row in outcome.rows)


def test_a_stop_token_inside_the_prompt_means_nothing(target, prompts):
    for stop in range(VOCAB):
        marked = [[*prompt[:-1], stop, *prompt[-1:]] for prompt in prompts[:6]]
        wanted = [greedy_alone(target, prompt, NEW, frozenset()) for prompt in marked]
        if all(stop not in output for output in wanted):
            break
    else:
        pytest.fail("no token is absent from all outputs")
    rows, _ = run_all(make_engine(target, target), marked, NEW, frozenset({stop}))
    assert outputs(rows) == wanted


@pytest.mark.parametrize("scheduler", short_only(["static", "continuous", "exspec"], "exspec"))
def test_permuted_prompts_give_permuted_outputs(target, draft, prompts, expected, scheduler):
    order = list(range(len(prompts)))
    random.Random(1).shuffle(order)
    shuffled = [prompts[i] for i in order]
    rows, _ = run_all(make_engine(target, draft, scheduler=scheduler), shuffled, NEW)
    assert outputs(rows) == [expected[i] for i in order]
    rows, _ = run_all(make_engine(target, draft, scheduler=scheduler), prompts, NEW, order=order)
    assert outputs(rows) == expected, "the order of admission must not reach the outputs"


def test_exspec_groups_rows_of_equal_length(target, draft, prompts):
    """Whenever the window holds a full batch of one length, the round has it; nothing is padded then."""
    same = [prompt for prompt in prompts if len(prompt) == 9]
    engine = make_engine(target, draft, scheduler="exspec", batch=2, window=11)
    _, rounds = run_all(engine, same, NEW)
    assert rounds[0].same_length
    assert any(outcome.same_length for outcome in rounds[1:])


def test_static_batch_runs_until_its_last_row_ends(target, draft, prompts):
    _, rounds = run_all(make_engine(target, draft, batch=4), prompts, NEW)
    batches = [tuple(row.index // 4 for row in outcome.rows) for outcome in rounds]
    assert all(len(set(batch)) == 1 for batch in batches)
    assert [batch[0] for batch in batches] == sorted(batch[0] for batch in batches)


def test_no_moment_of_a_run_is_lost(target, draft, prompts):
    """What a policy takes to learn from a round is counted too: by the next one."""

    class Slow(FixedLength):
        def observe(self, outcome):
            time.sleep(0.01)

    engine = make_engine(target, draft, scheduler="continuous", batch=4, gamma=2)
    engine.draft_length = Slow(gamma=2)
    pool = SequencePool([Sequence(i, list(prompt), 8) for i, prompt in enumerate(prompts)])
    rounds = []
    while not pool.done:
        rounds.append(engine.step(pool))
    counted = sum(sum(outcome.seconds.values()) for outcome in rounds)
    assert 0.01 * (len(rounds) - 1) < counted
    assert 0.0 <= sum(engine.clock.seconds.values()) - counted < 0.05, "only what followed the last round"
