"""Drafters that know their guesses at once: the shapes of their trees, and that every output stays the target's."""

from __future__ import annotations

import itertools
import random
from functools import partial

import numpy as np
import pytest
import torch
from conftest import VOCAB, greedy_alone, small_llama
from harness import ALIGNMENTS, make_engine, run_all

from specdec.conformance.checked_drafter import draft_at_once, shape_problem
from specdec.core.clock import Clock
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence, SequencePool
from specdec.core.siblings import CHAIN, CHOSEN
from specdec.drafters.context import DrafterContext
from specdec.drafters.ranked_trees import assumed_accuracies, most_probable, read_accuracies
from specdec.drafters.sparse_trees import SparseTree, allocated, best_trees, stationary, transitions
from specdec.drafters.token_trees import merged
from specdec.drafters.tree_search import ranked, search
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


@pytest.mark.parametrize("batch", [1, 4, 8])
@pytest.mark.parametrize("alignment", ["eqspec", "inplace", "masked"])
@pytest.mark.parametrize("name", TREES)
def test_greedy_tokens_are_the_targets_own(model, known, truth, name, alignment, batch):
    budgets = [(NEW, 1, 2, NEW - 3, NEW - 1)[i % 5] for i in range(len(known))]
    rows, rounds = run_all(engine_of(model, name, alignment, batch), known, budgets)
    assert [row.output_ids for row in rows] == [t[: row.max_new_tokens] for t, row in zip(truth, rows, strict=True)]
    assert max(max(outcome.num_drafted) for outcome in rounds) > 4, "it drafted no tree"


@pytest.mark.parametrize("name", TREES)
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


@pytest.mark.parametrize("name", TREES)
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


@pytest.mark.parametrize("name", TREES)
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


# --- shapes ----------------------------------------------------------------------------------------------------------


def test_merged_paths_are_a_tree():
    rng = random.Random(0)
    for _ in range(50):
        paths = [[rng.randrange(3) for _ in range(rng.randint(0, 4))] for _ in range(8)]
        prefixes = list(dict.fromkeys(tuple(path[: i + 1]) for path in paths for i in range(len(path))))
        for limit in (None, 0, 5):
            tree = merged(paths, limit)
            found: list[tuple[int, ...]] = []
            for token, parent in zip(tree.tokens, tree.parents, strict=True):
                found.append((*(found[parent] if parent >= 0 else ()), token))  # the parent is there already
            assert found == prefixes[:limit]


def tables(rng, places, ranks):
    return [sorted((rng.random() / ranks for _ in range(ranks)), reverse=True) for _ in range(places)]


def test_the_most_probable_nodes_are_the_best_tree():
    rng = random.Random(1)
    for places, ranks, size in itertools.product((1, 2, 3), (1, 2, 3), (1, 3, 5)):
        accuracies = tables(rng, places, ranks)
        tree = most_probable(accuracies, size)
        paths: list[tuple[int, ...]] = []
        for parent, place, rank in zip(tree.parents, tree.places, tree.ranks, strict=True):
            assert parent < len(paths)
            paths.append((*(paths[parent] if parent >= 0 else ()), rank))
            assert len(paths[-1]) == place + 1
        everything = [p for depth in range(1, places + 1) for p in itertools.product(range(ranks), repeat=depth)]
        value = {path: float(np.prod([accuracies[i][rank] for i, rank in enumerate(path)])) for path in everything}
        closed = (
            [
                chosen
                for chosen in itertools.combinations(everything, min(size, len(everything)))
                if all(path[:-1] in chosen or len(path) == 1 for path in chosen)
            ]
            if len(everything) <= 14
            else []
        )
        assert set(paths) <= set(everything)
        if closed:
            assert tree.num_expected == pytest.approx(max(sum(value[p] for p in chosen) for chosen in closed))


def test_accuracies_are_checked_when_read():
    assert read_accuracies({}, 2) == assumed_accuracies(2)
    assert read_accuracies({"accuracies": [[0.5, 0.1]]}, 1) == [[0.5, 0.1]]
    for wrong in ([[0.5]], [[0.5], [0.1, 0.2]], [[1.5], [0.2]], [[0.6, 0.6], [0.1, 0.1]], "many", [[], []]):
        with pytest.raises(ConfigError, match="accuracies"):
            read_accuracies({"accuracies": wrong}, 2)


# --- PPD's states ----------------------------------------------------------------------------------------------------


def test_prompt_tokens_are_dropped_where_the_loss_is_smallest():
    ends, values, budget = [0.5, 0.3, 0.15, 0.05], [0.4, 0.7, 0.8], 8
    counts = allocated(ends, values, budget)
    worth = lambda chosen: sum(end * values[n - 1] for end, n in zip(ends, chosen, strict=True))  # noqa: E731
    possible = [c for c in itertools.product((1, 2, 3), repeat=4) if sum(c) <= budget]
    assert sum(counts) == budget
    assert worth(counts) == pytest.approx(max(map(worth, possible)))


def test_the_states_of_a_simulation_follow_the_transition_matrix():
    accuracies = [[0.5, 0.2, 0.1], [0.4, 0.2, 0.1], [0.3, 0.15, 0.1]]
    trees = best_trees(accuracies, 14)
    assert all(tree.num_nodes <= 14 and min(tree.num_probes) >= 1 for tree in trees.by_state)
    random_, state, accepted = np.random.default_rng(0), 3, 0
    rounds, visits, moves = 20_000, np.zeros(3), np.zeros((3, 3))
    # By place the rank of the true token; 3: none is right.
    truth = np.stack([random_.choice(4, size=rounds, p=[*row, 1 - sum(row)]) for row in accuracies], axis=1).tolist()
    for turn in range(rounds):
        tree: SparseTree = trees.by_state[state - 1]
        right = truth[turn]
        end, shape = -1, tree.candidates
        for node, parent in enumerate(shape.parents):
            if parent == end and right[shape.places[node]] == shape.ranks[node]:
                end, accepted = node, accepted + 1
        after = tree.num_probes[end + 1]
        visits[state - 1] += 1
        moves[state - 1, after - 1] += 1
        state = after
    matrix = transitions(trees.by_state)
    assert np.allclose(matrix.sum(1), 1)
    np.testing.assert_allclose(moves / moves.sum(1, keepdims=True).clip(1), matrix * (visits > 0)[:, None], atol=0.02)
    np.testing.assert_allclose(visits / rounds, trees.stationary, atol=0.02)
    assert accepted / rounds == pytest.approx(trees.num_expected, abs=0.02)
    assert stationary(np.array([[0.0, 1.0], [1.0, 0.0]])).tolist() == pytest.approx([0.5, 0.5]), "a period is no matter"


def test_larger_budgets_are_never_worse():
    accuracies = assumed_accuracies(3)
    expected = [best_trees(accuracies, budget).num_expected for budget in (3, 6, 10, 20, 40)]
    assert expected == sorted(expected)
    assert expected[0] == pytest.approx(0.5), "a single candidate"


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


# --- the search over trigrams ----------------------------------------------------------------------------------------


def store_of(rng, num_tokens, branches):
    made: dict[tuple[int, int], dict[int, float]] = {}

    def look_up(pair):
        if pair not in made:
            made[pair] = {rng.randrange(num_tokens): rng.random() ** 3 for _ in range(branches)}
        return ranked(made[pair])

    return look_up


def test_a_search_is_repeatable_and_begins_with_the_chain():
    rng = random.Random(0)
    look_up, draws = store_of(rng, 12, 8), [rng.random() for _ in range(600)]
    found = [merged(search(look_up, (1, 2), 4, 32, 150, lambda _: draws), 32) for _ in range(2)]
    assert found[0] == found[1]
    assert len(found[0].tokens) == 32
    pair, chain = (1, 2), []
    for _ in range(4):
        chain.append(look_up(pair)[0][0])
        pair = (pair[1], chain[-1])
    assert found[0].tokens[:4] == chain
    assert found[0].parents[:4] == [-1, 0, 1, 2]


def test_the_draws_decide_between_equal_weights():
    rng = random.Random(0)
    deeper, draws = store_of(rng, 12, 8), [rng.random() for _ in range(600)]
    look_up = lambda pair: ranked(dict.fromkeys(range(8), 0.1)) if pair == (1, 2) else deeper(pair)  # noqa: E731
    found = [
        merged(search(look_up, (1, 2), 4, 32, 150, lambda _, own=numbers: own), 32) for numbers in (draws, draws[::-1])
    ]
    assert found[0] != found[1]


def test_a_small_store_is_proposed_whole():
    look_up = partial(dict.get, {(1, 2): ranked({3: 1.0, 4: 0.5}), (2, 3): ranked({5: 1.0})})
    paths = list(search(lambda pair: look_up(pair) or ranked({}), (1, 2), 3, 10, 9, lambda count: [0.5] * count))
    tree = merged(paths, 10)
    assert (tree.tokens, tree.parents) == ([3, 5, 4], [-1, 0, -1])


def test_the_search_visits_heavy_successors_more():
    weights = {(0, 0): ranked({1: 0.7, 2: 0.2, 3: 0.1})}
    look_up = lambda pair: weights.get(pair) or ranked(dict.fromkeys(range(30), 1 / 30))  # noqa: E731
    rng = random.Random(2)
    draws = [rng.random() for _ in range(400)]
    tree = merged(search(look_up, (0, 0), 2, 40, 200, lambda _: draws), 40)
    parents = [tree.tokens[p] for p in tree.parents if p >= 0]
    assert parents.count(1) > parents.count(2) > 0


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
