"""Online adaptation: outputs stay exact, and gains are counted exactly."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from cases import short_only
from hydra import compose, initialize_config_module

from specdec.adaptation.adapting import AdaptingDrafter
from specdec.adaptation.build import adapting, with_own_draft
from specdec.adaptation.served import Feedback
from specdec.config.drafter_weights import drafter_label_of
from specdec.config.identity import identity
from specdec.config.reference import baseline_run, has_reference
from specdec.config.resolve import resolve
from specdec.conformance.decoding import Parts, check_run, drafter_context
from specdec.conformance.distributions import LIMIT
from specdec.conformance.models import small_pair
from specdec.conformance.suites import _patterns, _sampled_runs
from specdec.core.clock import Clock
from specdec.core.random_numbers import TEST, uniforms
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence, SequencePool
from specdec.engine.loop import RoundLoop
from specdec.errors import ConfigError
from specdec.registry import create, lookup
from specdec.training.eagle3 import Eagle3Head
from specdec.training.online import load_head

SETTINGS = {"arm": None, "rows": 1, "depth": 3, "max_tokens": 64, "horizon": None, "trial_share": 0.05}
LEARNERS = ("eagle3", "model", "specblock", "specblock of trees")


def learning(context, name, lr=0.3, **settings):
    """A drafter that learns from every finished row, at a rate that changes its drafts beyond recognition."""
    context, name, trees = with_own_draft(context), *name.partition(" ")[::2]
    params = {} if name == "model" else {"untrained": True, **({"nodes": 6} if trees else {})}
    chosen = {**SETTINGS, "policy": "always", "lr": lr, **settings}
    return adapting(create("drafter", name, context, **params), context, lookup("drafter", name).learner, **chosen)


def engine_of(target, draft, name, batch, verifier, clock=None, gamma=3, **settings):
    align = partial(create, "alignment", "inplace")
    clock = clock or Clock()
    drafter = learning(drafter_context(target, draft, clock, align, []), name, **settings)
    scheduler, length = create("scheduler", "continuous", batch, batch), create("draft_length", "fixed", gamma=gamma)
    return RoundLoop(align(target, clock), drafter, create("verifier", verifier), scheduler, length, clock)


def decoded(engine, rows):
    pool, learned = SequencePool(rows), []
    while not pool.done:
        learned.append(engine.step(pool).learned)
    return [one for one in learned if one]


@pytest.mark.parametrize("name", short_only(LEARNERS, "model"))
def test_greedy_rows_and_sampled_ones_under_naive_emit_the_same_tokens_whatever_was_learned(name):
    """The kit's runs, whose outputs are known; the draft changes after every finished row."""
    cases = [case for case in _patterns(("static", "continuous", "exspec")) if not case.pattern] + _sampled_runs()
    parts = Parts(drafter=partial(learning, name=name))
    for case in cases:
        assert check_run(case, parts) == [], str(case)


@pytest.mark.parametrize("name", short_only(LEARNERS, "eagle3", "specblock of trees"))
def test_the_rounds_that_a_learner_counts_are_those_that_were_run(name):
    """A forward over the finished rows tells how many rounds each took, with drafts that are right here and there."""
    target, draft = small_pair(0, "float32")
    engine = engine_of(target, draft, name, 3, "greedy", rows=2, lr=0.01)
    decoded(engine, [Sequence(i, [1 + i, 2, 3 + i], 16) for i in range(12)])
    engine.drafter._feedback.take()
    engine.drafter._rows = 10**6  # from here on nothing is learned
    # Chains are counted by a forward, which knows of no penalty.
    penalised = SamplingParams(0.0, repetition_penalty=1.5) if "specblock" in name else None
    rows = [
        Sequence(20 + i, [1 + i, 3, 2 + i, 1], 4 + 2 * i, stops, penalised if i % 3 == 0 else None)
        for i, stops in enumerate([frozenset({5})] * 10 + [frozenset({5, 8, 9})] * 10)
    ]
    decoded(engine, rows)
    finished = engine.drafter._feedback.take()
    of_tokens = {tuple(row.tokens(0)): len(row.accepted_lengths) for row in rows}
    assert engine.drafter.learner.num_rounds(finished) == [of_tokens[tuple(row.ids)] for row in finished]
    accepted = [count for row in rows for count in row.accepted_lengths]
    assert {0, 1, 2, 3} <= set(accepted)


@pytest.mark.parametrize("name", short_only(LEARNERS, "model"))
def test_what_is_learned_is_what_drafts(name):
    """Updates on one row until its draft is right: the loop then accepts it."""
    target, draft = small_pair(1, "float32")
    engine = engine_of(target, draft, name, 1, "greedy", lr=0.01, rows=10**6)
    decoded(engine, [Sequence(0, [3, 1, 4], 24)])
    learner, rows = engine.drafter.learner, engine.drafter._feedback.take()
    (before,) = learner.num_rounds(rows)
    learner.mark()
    for _ in range(30):
        learner.update("drafter", rows)
    (after,) = learner.num_rounds(rows)
    again = Sequence(1, [3, 1, 4], 24)
    decoded(engine, [again])
    assert len(again.accepted_lengths) == after < before
    assert learner.num_rounds(rows, before=True) == [before]
    still = Sequence(3, [3, 1, 4], 24)
    decoded(engine, [still])
    assert len(still.accepted_lengths) == after, "counting changes nothing"
    learner.restore()
    assert learner.num_rounds(rows) == [before]
    old = Sequence(2, [3, 1, 4], 24)
    decoded(engine, [old])
    assert len(old.accepted_lengths) == before


@pytest.mark.parametrize("name", ["fused", "native"])
def test_packed_weights_of_a_draft_are_made_again(name):
    target, draft = small_pair(1, "float32")
    engine = engine_of(target, draft, "model", 1, "greedy", lr=0.01, rows=10**6)
    learner = engine.drafter.learner
    learner._draft.execute(name)
    decoded(engine, [Sequence(0, [3, 1, 4], 24)])
    rows = engine.drafter._feedback.take()
    (before,) = learner.num_rounds(rows)
    for _ in range(20):
        learner.update("drafter", rows)
    assert learner._draft.execution.name == name
    decoded(engine, [row := Sequence(1, [3, 1, 4], 24)])
    assert learner.num_rounds(rows) == [len(row.accepted_lengths)] != [before]
    theirs, ours = next(draft.module.parameters()), next(learner._draft.module.parameters())
    assert not torch.equal(theirs, ours)  # the pair's own is as it was


class KnowsTheNoise(AdaptingDrafter):
    """Control: what it drafts from depends on the number that will test the row's first token."""

    def propose(self, rows, gammas):
        draft = super().propose(rows, gammas)
        if draft.probs_BGV is not None:
            draft.tokens_BG, draft.probs_BGV = draft.tokens_BG.clone(), draft.probs_BGV.clone()
            tests_B1 = uniforms([(row.sampling.seed, row.index) for row in rows], [[r.length] for r in rows], TEST, [0])
            for b in (tests_B1[:, 0] > 0.5).nonzero()[:, 0].tolist():
                draft.tokens_BG[b, 0] = best = int(draft.probs_BGV[b, 0].argmax())
                draft.probs_BGV[b, 0] = torch.nn.functional.one_hot(torch.tensor(best), draft.probs_BGV.shape[-1])
        return draft


def first_tokens(num_rows, cheat=False):
    """How often each pair of first tokens is emitted, and the target's own distribution of them."""
    target, draft = small_pair(0, "float64")
    engine = engine_of(target, draft, "eagle3", 16, "rejection", lr=0.05, rows=12, gamma=2)
    if cheat:
        engine.drafter.__class__ = KnowsTheNoise
    prompt = [3, 1, 4]
    rows = [Sequence(i, prompt, 3, sampling=SamplingParams(1.0, seed=7)) for i in range(num_rows)]
    learned = decoded(engine, rows)
    vocab = target.vocab_size
    ids = torch.tensor([[*prompt, first] for first in range(vocab)])
    with torch.no_grad():
        logits = target.module(input_ids=ids).logits.double().softmax(-1)
    expected = logits[0, 2][:, None] * logits[:, 3]
    counts = torch.zeros(vocab, vocab, dtype=torch.float64)
    for row in rows:
        counts[row.output_ids[0], row.output_ids[1]] += 1
    return counts, num_rows * expected, learned


def worst(counts, expected):
    """Standard deviations of the count that is farthest off, of first tokens and of likely pairs."""
    total = float(expected.sum())
    pairs = [(counts.sum(1), expected.sum(1)), (counts.sum(0), expected.sum(0)), (counts, expected)]
    return max(float(((c - e).abs() / (e * (1 - e / total)).clamp(min=5.0).sqrt()).max()) for c, e in pairs)


@pytest.mark.nightly
def test_sampled_rows_keep_the_targets_distribution_while_the_drafter_learns_from_their_neighbours():
    counts, expected, learned = first_tokens(2000)
    assert len(learned) > 100
    assert worst(counts, expected) < LIMIT
    assert worst(*first_tokens(2000, cheat=True)[:2]) > LIMIT, "the control shall be found"


def test_only_finished_rows_are_learned_from_and_up_to_their_stop():
    feedback = Feedback(max_tokens=4)
    row, other = Sequence(0, [1, 2, 3], 9, frozenset({7})), Sequence(1, [1], 9)
    feedback.observe_hidden([row, other], torch.arange(10.0).view(2, 5, 1), [[0, 1], [0]])
    feedback.observe_hidden([row], torch.tensor([[[20.0], [21], [22], [23]]]), [[0, 1, 3]])
    row.emit([6, 7, 8])  # the stop cuts off an accepted token
    feedback.release([row, other])
    (served,) = feedback.take()
    assert served.ids == [2, 3, 6, 7]
    assert served.num_given == 2
    assert served.hidden_TH[:, 0].tolist() == [1.0, 20.0, 21.0]
    assert feedback.take() == []


def test_tokens_past_a_stop_push_nothing_out():
    """A draft that is accepted far beyond a stop, in a row as long as what is kept."""
    feedback, row = Feedback(max_tokens=4), Sequence(0, [1, 2, 3], 9, frozenset({7}))
    feedback.observe_hidden([row], torch.arange(2.0).view(1, 2, 1), [[0, 1]])
    row.emit([6, 7])
    feedback.observe_hidden([row], torch.arange(2.0, 11.0).view(1, 9, 1), [list(range(9))])
    feedback.release([row])
    (served,) = feedback.take()
    assert served.ids == [2, 3, 6, 7]
    assert served.hidden_TH[:, 0].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("name", short_only(LEARNERS, "specblock of trees"))
def test_windows_of_two_tokens_teach_nothing_and_break_nothing(name):
    target, draft = small_pair(1, "float32")
    engine = engine_of(target, draft, name, 2, "greedy", max_tokens=2)
    rows = [Sequence(i, [1 + i], 5) for i in range(4)]
    decoded(engine, rows)
    assert [len(row.output_ids) for row in rows] == [5] * 4
    served = engine.drafter._feedback.take()
    assert all(len(row.ids) == 2 for row in served)
    assert engine.drafter.learner.num_rounds(served) == [1] * len(served)


def config_of(*words):
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        return resolve(compose(config_name="config", overrides=["drafter=eagle3", "adapt.policy=bandit", *words]))


@pytest.mark.slow
def test_sampled_runs_that_learn_have_no_reference_but_naive_ones_have():
    sampled = ("temperature=1", "draft_length=fixed")
    assert not has_reference(config_of(*sampled, "verifier=rejection"))
    assert has_reference(config_of(*sampled, "verifier=naive"))
    assert has_reference(config_of(*sampled, "verifier=rejection", "adapt.policy=none"))
    assert has_reference(config_of())
    assert baseline_run(config_of()).adapt.policy == "none"
    assert "adapt" in identity(config_of())
    assert "arm" not in identity(config_of())["adapt"], "as before there were any"
    assert "adapt" not in identity(config_of("adapt.policy=none", "adapt.rows=3")), "results keep their hash"


def test_tables_tell_apart_what_learns():
    assert drafter_label_of(config_of("adapt.arm=head")) == "eagle3, adapt=bandit (head)"
    assert drafter_label_of(config_of()) == "eagle3, adapt=bandit"
    assert drafter_label_of(config_of("adapt.policy=none")) == "eagle3"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["adapt.policy=sometimes"], "choose from always, bandit, none"),
        (["drafter=prompt_lookup"], "set drafter=eagle3|model|specblock"),
        (["adapt.rows=0"], "adapt.rows=0: it must be at least 1"),
        (["adapt.trial_share=0"], "adapt.trial_share=0"),
        (["adapt.policy=none", "adapt.arm=head"], "adapt.arm=head with adapt.policy=none: set adapt.policy=always"),
        (["numerics=invariant"], "numerics=invariant: updates are not measured"),
        (["drafter=model", "debug=invariants"], "debug.invariants=true"),
        (["runner.tensor_parallel=true", "runner.devices=2"], "processes would learn apart; set adapt.policy=none"),
    ],
)
def test_what_does_not_fit_is_refused(words, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        config_of(*words)


def test_a_head_that_training_does_not_know_is_refused():
    target, _ = small_pair(0, "float32")
    drafter = create("drafter", "eagle3", drafter_context(target, None, Clock(), None, []), untrained=True)
    spec = replace(drafter.weights.spec, config={"norm_output": True})
    with pytest.raises(ConfigError, match="does not train heads with norm_output"):
        load_head(Eagle3Head(target.module, [0, 1, 2]), replace(drafter.weights, spec=spec))
