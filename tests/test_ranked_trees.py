"""Trees from tables of accuracies by place and rank: the most probable nodes, and PPD's tree of each state."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from specdec.drafters.ranked_trees import assumed_accuracies, most_probable, read_accuracies
from specdec.drafters.sparse_trees import SparseTree, allocated, best_trees, stationary, transitions
from specdec.errors import ConfigError


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
