"""Drafters that know their guesses at once: every output stays the target's, whatever the tree."""

from __future__ import annotations

import pytest
import torch
from cases import each_value, short_only
from conftest import VOCAB, greedy_alone, small_llama
from harness import ALIGNMENTS, make_engine, run_all

from specdec.conformance.checked_drafter import draft_at_once, shape_problem
from specdec.core.clock import Clock
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence, SequencePool
from specdec.core.siblings import CHAIN, CHOSEN
from specdec.drafters.context import DrafterContext
from specdec.errors import ConfigError
from specdec.models.causal_lm import CausalLM
from specdec.registry import create
from specdec.verifiers.naive import NaiveVerifier

NEW = 14
TREES = {
    "medusa": {"untrained": True, "num_heads": 3, "nodes": 12},
    "ppd": {"untrained": True, "num_tokens": 3, "nodes": 16},
    "trigram": {"nodes": 16},
    "prompt_lookup": {"matches": 3},
}


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM(small_llama(0, torch.float64))


@pytest.fixture(scope="module")
def known(model, prompts) -> list[list[int]]:
    """Prompts that hold their own output, so that text drafters are right sometimes, and two very short ones."""
    outputs = [greedy_alone(model, prompt, NEW, frozenset()) for prompt in prompts[1:9]]
    whole = [prompt + output + prompt for prompt, output in zip(prompts[1:9], outputs, strict=True)]
    return [[7], *whole, [3, 4]]


@pytest.fixture(scope="module")
def truth(model, known) -> list[list[int]]:
    return [greedy_alone(model, prompt, NEW, frozenset()) for prompt in known]


def drafter_of(model, name, alignment="inplace"):
    clock = Clock()
    context = DrafterContext(model, None, lambda other: ALIGNMENTS[alignment](other, clock), clock)
    return create("drafter", name, context, **TREES[name])


def engine_of(model, name, alignment="inplace", batch=4, **parts):
    drafter = drafter_of(model, name, alignment)
    return make_engine(
        model, drafter=drafter, alignment=ALIGNMENTS[alignment], batch=batch, scheduler="continuous", gamma=4, **parts
    )


# --- every output is the target's -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "alignment", "batch"), each_value(list(TREES), ["inplace", "eqspec", "masked"], [4, 1, 8])
)
def test_greedy_tokens_are_the_targets_own(model, known, truth, name, alignment, batch):
    budgets = [(NEW, 1, 2, NEW - 3, NEW - 1)[i % 5] for i in range(len(known))]
    rows, rounds = run_all(engine_of(model, name, alignment, batch), known, budgets)
    assert [row.output_ids for row in rows] == [t[: row.max_new_tokens] for t, row in zip(truth, rows, strict=True)]
    assert max(max(outcome.num_drafted) for outcome in rounds) > 4, "it drafted no tree"


@pytest.mark.parametrize("name", short_only(TREES, "prompt_lookup"))
def test_a_rows_rounds_do_not_depend_on_its_neighbours(model, known, name):
    accepted = []
    for batch in (1, 4):
        rows, _ = run_all(engine_of(model, name, batch=batch), known, NEW)
        accepted.append([(row.accepted_lengths, row.num_drafted) for row in rows])
    assert accepted[0] == accepted[1]


@pytest.mark.parametrize("name", TREES)
def test_drafts_of_any_length_are_trees(model, known, name):
    """A shallow tree has more siblings than a deep one: they must be different tokens too."""
    for gammas in ([1, 1, 1], [4, 1, 0], [2, 3, 1]):
        rows = [Sequence(i, list(ids), NEW) for i, ids in enumerate(known[:3])]
        gammas = [min(gamma, 3) for gamma in gammas]
        assert shape_problem(draft_at_once(drafter_of(model, name), rows, gammas, model), gammas) == ""


@pytest.mark.parametrize("name", short_only(TREES, "medusa", "prompt_lookup"))
def test_naive_sampling_gives_the_tokens_of_plain_sampling(model, known, name):
    def sampled(engine):
        params = [SamplingParams(temperature=0.9 * (i % 3), seed=i, repetition_penalty=1.2) for i in range(len(known))]
        rows = [Sequence(i, list(ids), NEW, sampling=params[i]) for i, ids in enumerate(known)]
        pool = SequencePool(rows)
        while not pool.done:
            engine.step(pool)
        return [row.output_ids for row in rows]

    plain = make_engine(model, alignment=ALIGNMENTS["inplace"], verifier=NaiveVerifier(), scheduler="continuous")
    assert sampled(engine_of(model, name, verifier=NaiveVerifier())) == sampled(plain)


@pytest.mark.parametrize("name", short_only(TREES, "ppd", "prompt_lookup"))
def test_rows_end_where_the_context_does(name):
    model = CausalLM(small_llama(0, torch.float64, max_position_embeddings=40))
    prompts = [list(range(1, 22)) * 2, [5, 6, 7] * 9, [1, 2] * 3]
    prompts = [prompt[:30] for prompt in prompts]
    budgets = [model.context_length - len(prompt) for prompt in prompts]
    rows, _ = run_all(engine_of(model, name), prompts, budgets)
    for row, prompt in zip(rows, prompts, strict=True):
        assert row.output_ids == greedy_alone(model, prompt, row.max_new_tokens, frozenset())


def test_kinds_of_siblings(model):
    clock = Clock()
    context = DrafterContext(model, None, lambda other: ALIGNMENTS["inplace"](other, clock), clock)
    assert create("drafter", "medusa", context, untrained=True).siblings == CHAIN
    assert {drafter_of(model, name).siblings for name in TREES} == {CHOSEN}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("medusa", {"untrained": True, "nodes": 0}, "drafter.nodes=0"),
        ("ppd", {"untrained": True, "nodes": 2}, "drafter.nodes=2"),
        ("ppd", {"untrained": True, "fit_nodes": True}, "set that too"),
        ("trigram", {"nodes": 0}, "drafter.nodes=0"),
        ("trigram", {"nodes": 4, "searches": 0}, "drafter.searches=0"),
        ("prompt_lookup", {"matches": 0}, "drafter.matches=0"),
    ],
)
def test_settings_that_make_no_tree_are_refused(model, name, settings, message):
    clock = Clock()
    context = DrafterContext(model, None, lambda other: ALIGNMENTS["inplace"](other, clock), clock)
    with pytest.raises(ConfigError, match=message):
        create("drafter", name, context, **settings)


@torch.inference_mode()
def test_guesses_are_those_of_a_forward_without_a_cache(model):
    """The prompt tokens after the last token, in one plain forward over embeddings: as many as the state says."""
    engine = engine_of(model, "ppd", batch=2)
    drafter = engine.drafter
    pool, states = SequencePool([Sequence(0, [4, 8, 15, 16], 24), Sequence(1, [23, 42], 24)]), set()
    while not pool.done:
        engine.step(pool)
        for row in pool.active:
            state = drafter._state[row.index]
            seen = torch.tensor([row.tokens(0)[:-1]])
            embeds = torch.cat([model.module.get_input_embeddings()(seen), drafter.probes_MD[None, :state]], dim=1)
            logits = model.module(inputs_embeds=embeds).logits[0, -state:]
            guesses = drafter._guesses[row.index].view(3, -1)[:state]
            assert guesses.tolist() == logits.topk(guesses.shape[1]).indices.tolist()
            states.add(state)
    assert len(states) > 1


def test_a_measured_size_is_one_of_those_allowed(model, capsys):
    clock = Clock()
    context = DrafterContext(model, None, lambda other: ALIGNMENTS["inplace"](other, clock), clock)
    drafter = create("drafter", "ppd", context, untrained=True, nodes=24, fit_nodes=True)
    drafter.prepare(2)
    assert "at batch size 2" in capsys.readouterr().out
    assert 3 <= max(len(tree.parents) for tree in drafter._trees) <= 24
    assert not any(clock.seconds.values()), "measuring is no part of the run"


# --- several matches -------------------------------------------------------------------------------------------------


def test_matches_are_the_latest_of_the_longest(model):
    drafter = drafter_of(model, "prompt_lookup")
    row = Sequence(0, [1, 2, 3, 9, 8, 5, 2, 3, 6, 6, 1, 2, 3, 9, 7, 1, 2, 3], 9)
    drafter.admit([row, other := Sequence(1, [VOCAB - 1], 9)])
    draft = drafter.propose([row, other], [2, 2])
    # 1 2 3 twice, the latest first; then 2 3 6, which a shorter n-gram finds
    assert draft.num_drafted == [5, 0]
    assert draft.tokens_BG[0].tolist() == [9, 7, 8, 6, 6]
    assert draft.parents is not None
    assert draft.parents[0] == [-1, 0, 0, -1, 3]
