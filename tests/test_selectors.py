"""Selectors: shapes of rows in one batch, the exact block efficiency of a shape, and what a selector may see."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy
import pytest
import torch
from branches import branches
from cases import short_only
from enumeration import Laws
from tree_laws import independent, judge, number, table

from specdec.core.round import Draft
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence
from specdec.registry import create
from specdec.selectors.combs import CombLayout, Combs
from specdec.selectors.efficiency import RULES, TRAVERSAL, expected_accepted
from specdec.trees.base import RowShape
from specdec.trees.growth import Growth

EXACT = 1e-12
FORMULAS = [*RULES, TRAVERSAL]


def texts_of(layout: CombLayout, tokens: list[int]) -> list[tuple[int, ...]]:
    """The text after each column."""
    texts: list[tuple[int, ...]] = [()]
    for level in range(layout.depth):
        first = 1 + layout.start(level - 1) if level else 0
        for slot, parent in enumerate(layout.parents(level)):
            texts.append((*texts[first + parent], tokens[layout.start(level) + slot]))
    return texts


def combs_of(laws: Laws, layout: CombLayout, tokens: list[list[int]]) -> tuple[Combs, numpy.ndarray]:
    """Combs of these tokens, and the probability of each."""
    p_XV, q_XV = (torch.from_numpy(table(law, laws.vocab)) for law in (laws.p, laws.q))
    texts = [texts_of(layout, row) for row in tokens]
    inner = 1 + layout.start(layout.depth - 1)
    names_RC = torch.tensor([[number(text, laws.vocab) for text in row[:inner]] for row in texts])
    weights = [numpy.prod([laws.q[text[:-1]][text[-1]] for text in row[1:]]) for row in texts]
    return Combs(layout, torch.tensor(tokens), p_XV[names_RC], q_XV[names_RC]), numpy.array(weights)


@pytest.mark.parametrize("verifier", FORMULAS)
def test_the_formulas_are_averages_over_a_verifiers_random_numbers(verifier):
    """Comb by comb, for every shape, against all branches of the production verifier."""
    for seed, vocab, cut in ((0, 2, False), (1, 3, False), (2, 3, True)):
        laws, layout = Laws.random(seed, vocab, 2, 0.6, cut), CombLayout(3, 2)
        rng = numpy.random.default_rng(seed)
        drawn = [[0] * layout.start(2) for _ in range(3)]
        for row in drawn:
            for level in range(2):
                for slot in range(layout.width(level)):
                    text = texts_of(layout, row)[1 + layout.start(level) + slot][:-1]
                    row[layout.start(level) + slot] = int(rng.choice(vocab, p=laws.q[text]))
        combs, _ = combs_of(laws, layout, drawn)
        found = expected_accepted(verifier, combs)
        for a, shape in enumerate(layout.shapes):
            draft, probs = combs.drafts(shape)
            if shape.depth == 0:
                assert (found[:, a] == 0).all()
                continue
            leaves = branches(create("verifier", verifier), draft, probs, shape.depth + 1)
            depths = [len(draft.path(r, end - 1)) for r, end in zip(leaves.drafts_R, leaves.ends_R, strict=True)]
            wanted = numpy.bincount(leaves.drafts_R, leaves.masses() * depths, len(drawn))
            assert found[:, a].numpy() == pytest.approx(wanted, abs=EXACT), (seed, shape)


@pytest.mark.parametrize("verifier", FORMULAS)
def test_the_mean_over_combs_is_what_a_shape_accepts(verifier):
    """All combs with their probabilities, against all drafts of the shape: one sample serves every shape."""
    laws, layout = Laws.random(5, 2, 2, 0.5), CombLayout(2, 2)
    tokens = [list(row) for row in itertools.product(range(2), repeat=layout.start(2))]
    combs, weights = combs_of(laws, layout, tokens)
    means = weights @ expected_accepted(verifier, combs).numpy()
    for shape, mean in zip(layout.shapes, means, strict=True):
        if shape.depth:
            drafts = independent(laws, shape.trunk, shape.width, shape.depth - shape.trunk)
            assert mean == pytest.approx(judge(create("verifier", verifier), laws, drafts).accepted, abs=EXACT), shape


# --- rows of different shapes in one batch ------------------------------------------------------------------------

SHAPES = [RowShape(3, 1, 3), RowShape(1, 0, 2), RowShape(2, 0, 3), RowShape(4, 2, 4), RowShape(1, 0, 0)]


def grown(shapes: list[RowShape], seeds: list[int], law_VV: torch.Tensor, tree: str = "paths", **settings) -> Draft:
    """Drafts of rows with shapes of their own, from a draft model whose law follows from the last token."""
    rows = [Sequence(i, [0], 100, sampling=SamplingParams(1.0, seed=seed)) for i, seed in enumerate(seeds)]
    settings = settings or {"num_paths": 4}
    growth = Growth(create("tree", tree, **settings), rows, [4] * len(rows), [1] * len(rows), None, lambda _: shapes)
    last_BN = torch.zeros(len(rows), 1, dtype=torch.long)
    while (feed := growth.add(law_VV[last_BN].log())) is not None:
        last_BN = feed.tokens_BN
    return growth.draft()


def nodes_of(draft: Draft, b: int) -> list[tuple[int, ...]]:
    """A row's nodes and draws as token paths."""
    paths = [tuple(draft.ids[b][n] for n in draft.path(b, node)) for node in range(draft.num_drafted[b])]
    return paths + [paths[node] for node in (draft.draws or {b: range(len(paths))})[b]]


def random_law(seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.distributions.Dirichlet(torch.ones(5, dtype=torch.float64)).sample((5,))


def test_a_rows_tree_is_the_same_alone_and_beside_other_shapes():
    law_VV = random_law(0)
    together = grown(SHAPES, [7] * len(SHAPES), law_VV)
    for b, shape in enumerate(SHAPES):
        # Row b keeps its number, which is part of its random numbers; the others draft nothing.
        alone = grown([shape if i == b else RowShape(1, 0, 0) for i in range(len(SHAPES))], [7] * len(SHAPES), law_VV)
        assert nodes_of(together, b) == nodes_of(alone, b), shape
        assert together.end_depth(b, []) == shape.depth
        assert len((together.draws or [])[b]) == shape.trunk + shape.width * (shape.depth - shape.trunk)


@pytest.mark.parametrize(("trunk", "paths", "depth"), short_only([(0, 2, 2), (1, 3, 2)], (1, 3, 2)))
def test_a_chosen_shape_has_the_law_of_the_same_tree(trunk, paths, depth):
    """Beside a row of another shape, so that both are drawn by masks."""
    law_VV, num = random_law(1), 4000
    tree = create("tree", "delayed", num_paths=paths, trunk=trunk)
    rows = [Sequence(i, [0], 100, sampling=SamplingParams(1.0, seed=3)) for i in range(num)]
    own = Growth(tree, rows, [depth] * num, [1] * num)
    last_BN = torch.zeros(num, 1, dtype=torch.long)
    while (feed := own.add(law_VV[last_BN].log())) is not None:
        last_BN = feed.tokens_BN
    shapes = [RowShape(paths, trunk, depth), RowShape(4, 0, 4)] * (num // 2)
    chosen = grown(shapes, [9] * num, law_VV)
    drafted = own.draft()
    wanted = Counter(tuple(nodes_of(drafted, b)) for b in range(0, num, 2))
    found = Counter(tuple(nodes_of(chosen, b)) for b in range(0, num, 2))
    cells = [cell for cell in wanted | found if wanted[cell] + found[cell] >= 20]
    statistic = sum((found[c] - wanted[c]) ** 2 / (found[c] + wanted[c]) for c in cells)
    assert len(cells) > 5
    assert statistic < len(cells) + 5 * (2 * len(cells)) ** 0.5


def test_widths_of_static_and_confidence_trees_keep_the_first_and_the_best_nodes():
    law_VV, shapes = random_law(2), [RowShape(3, 0, 4), RowShape(6, 0, 4), RowShape(1, 0, 4)]
    for tree, settings in (("static", {"path": None, "num_nodes": 6}), ("confidence", {"top_k": 3, "num_nodes": 6})):
        draft = grown(shapes, [1, 1, 1], law_VV, tree, **settings)
        assert draft.num_drafted == [3, 6, 1]
        assert set(nodes_of(draft, 2)) < set(nodes_of(draft, 0)) < set(nodes_of(draft, 1))


def test_rows_that_draft_nothing_leave_an_empty_draft():
    draft = grown([RowShape(1, 0, 0)] * 2, [0, 1], random_law(3))
    assert draft.num_drafted == [0, 0]
