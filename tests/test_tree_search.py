"""The search over trigrams for the nodes of a tree, and how its paths are merged."""

from __future__ import annotations

import random
from functools import partial

from specdec.drafters.token_trees import merged
from specdec.drafters.tree_search import ranked, search


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
