"""Laws of the growth of trees: what is drawn has its distribution, and the draft says from which it was drawn."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest
import torch
from cases import short_only
from harness import TREES

from specdec.core.round import Draft
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence
from specdec.drafters.draft_cache import FedRow
from specdec.registry import create
from specdec.trees.base import Tree
from specdec.trees.drawing import draw_distinct
from specdec.trees.growth import Growth


def law_of_order(probs: list[float], count: int) -> dict[tuple[int, ...], float]:
    """Plackett-Luce: ordered samples without replacement, with their probabilities."""
    law = {}
    for order in permutations([v for v, p in enumerate(probs) if p > 0], min(count, sum(p > 0 for p in probs))):
        chance, left = 1.0, 1.0
        for token in order:
            chance, left = chance * probs[token] / left, left - probs[token]
        law[order] = chance
    return law


def test_draws_are_the_same_wherever_distributions_are_kept():
    numbers = torch.Generator().manual_seed(0)
    probs_BNV = torch.rand(3, 4, 700, generator=numbers, dtype=torch.float64).softmax(-1)
    uniforms_BNJ = torch.rand(3, 4, 5, generator=numbers, dtype=torch.float64)
    kept_BGV = torch.zeros(3, 9, 700, dtype=torch.float64)
    part_BNV = kept_BGV[:, 2:6]
    part_BNV.copy_(probs_BNV)
    here, there = draw_distinct(probs_BNV.clone(), uniforms_BNJ), draw_distinct(part_BNV, uniforms_BNJ)
    assert torch.equal(here.tokens, there.tokens)
    assert torch.equal(here.masses, there.masses)
    assert torch.equal(part_BNV, probs_BNV), "drawn tokens have their probabilities again"
    assert not kept_BGV[:, :2].any()
    assert not kept_BGV[:, 6:].any()


@pytest.mark.parametrize(
    "probs",
    short_only(
        [[0.5, 0.1, 0.0, 0.4], [0.25] * 4, [0.97, 0.01, 0.01, 0.01], [0.0, 0.6, 0.4, 0.0]],
        [0.25] * 4,
        ci=[[0.0, 0.6, 0.4, 0.0]],
    ),
)
def test_an_ordered_sample_without_replacement_has_its_law(probs):
    """On a grid of all random numbers: its shares are the probabilities, up to the width of the grid."""
    steps, count = 64, 3
    grid = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    numbers = torch.cartesian_prod(*[grid] * count)
    probs_NV = torch.tensor(probs, dtype=torch.float64).expand(len(numbers), -1)
    sample = draw_distinct(probs_NV, numbers)
    found = Counter(
        tuple(tokens[:length]) for tokens, length in zip(sample.tokens.tolist(), sample.real.sum(-1), strict=True)
    )
    law = law_of_order(probs, count)
    assert set(found) <= set(law)
    for order, chance in law.items():
        assert found[order] / len(numbers) == pytest.approx(chance, abs=count / steps)


def test_a_sample_without_replacement_keeps_its_digits_where_one_token_has_nearly_all():
    probs_1V = torch.tensor([[2e-15, 1 - 1e-14, 8e-15]], dtype=torch.float64)
    for number, token in ((0.19, 0), (0.21, 2)):
        numbers = torch.tensor([[0.5, number, 0.5]], dtype=torch.float64)
        sample = draw_distinct(probs_1V, numbers)
        assert sample.tokens[0, :2].tolist() == [1, token]
        assert sample.real.all()


def grown(tree: Tree, law, depth: int, num_rows: int, temperature: float = 1.0) -> Draft:
    """Drafts of many rows, from a draft model whose next-token law follows from a row's last two tokens."""
    rows = [Sequence(i, [0], 100, sampling=SamplingParams(temperature, seed=7)) for i in range(num_rows)]
    growth = Growth(tree, rows, [depth] * num_rows, [1] * num_rows)
    last_BN = torch.zeros(num_rows, 1, dtype=torch.long)
    while (feed := growth.add(law[last_BN].log())) is not None:
        last_BN = feed.tokens_BN
    return growth.draft()


def random_law(vocab_size: int, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.distributions.Dirichlet(torch.ones(vocab_size, dtype=torch.float64)).sample((vocab_size,))


def assert_same_law(found: Counter, expected: Counter, num: int) -> None:
    """Two samples of one size have the same law (chi-square over cells with at least ten cases, 5 sigma)."""
    cells = [cell for cell in found.keys() | expected.keys() if found[cell] + expected[cell] >= 20]
    assert sum(found[cell] for cell in cells) > 0.9 * num
    statistic = sum((found[c] - expected[c]) ** 2 / (found[c] + expected[c]) for c in cells)
    assert statistic < len(cells) + 5 * (2 * len(cells)) ** 0.5, (statistic, len(cells))


def nodes_of(draft: Draft, b: int) -> tuple[tuple[int, ...], ...]:
    """A row's nodes as token paths, in the order of the draft."""
    return tuple(tuple(draft.ids[b][n] for n in draft.path(b, node)) for node in range(draft.num_drafted[b]))


def beams(law: torch.Tensor, depth: int, width: int, num: int) -> Counter:
    """Stochastic beam search with a Gumbel variable per sequence (Kool et al. 2019), directly."""
    gumbel = torch.distributions.Gumbel(0.0, 1.0)
    found: Counter = Counter()
    for _ in range(num):
        beam, levels = [((), 0.0, 0.0)], []
        for _ in range(depth):
            candidates = []
            for path, phi, value in beam:
                phis_V = phi + law[path[-1] if path else 0].log()
                noisy_V = phis_V + gumbel.sample(phis_V.shape).double()
                top = noisy_V.max()
                scaled_V = -torch.log(torch.exp(torch.tensor(-value)) - torch.exp(-top) + torch.exp(-noisy_V))
                found_V = noisy_V if not path else scaled_V
                candidates += [((*path, v), float(phis_V[v]), float(found_V[v])) for v in range(len(law))]
            beam = sorted(candidates, key=lambda c: -c[2])[:width]
            levels += [path for path, _, _ in beam]
        found[frozenset(levels)] += 1
    return found


def test_a_beam_has_the_law_of_stochastic_beam_search():
    law, num = random_law(3, 1), 3000
    draft = grown(create("tree", "beam", width=2), law, 2, num)
    found = Counter(frozenset(nodes_of(draft, b)) for b in range(num))
    assert_same_law(found, beams(law, 2, 2, num), num)


def test_the_children_of_a_gumbel_tree_follow_plackett_luce_at_every_depth():
    law, num = random_law(4, 2), 4000
    draft = grown(create("tree", "gumbel", branches=[2, 2]), law, 2, num)
    for parent in ((), (0,), (3,)):
        found: Counter = Counter()
        for b in range(num):
            nodes = nodes_of(draft, b)
            children = tuple(path[-1] for path in nodes if len(path) == len(parent) + 1 and path[:-1] == parent)
            if children:
                found[children] += 1
        total = sum(found.values())
        expected = {order: total * p for order, p in law_of_order(law[parent[-1] if parent else 0].tolist(), 2).items()}
        statistic = sum((found[order] - mean) ** 2 / mean for order, mean in expected.items())
        assert statistic < len(expected) + 5 * (2 * len(expected)) ** 0.5
        assert set(found) <= set(expected)


def test_paths_are_independent_draws_and_a_delayed_tree_draws_its_trunk_once():
    law, num = random_law(3, 3), 3000
    draft = grown(create("tree", "delayed", num_paths=2, trunk=1), law, 3, num)
    found: Counter = Counter()
    for b in range(num):
        nodes, draws = nodes_of(draft, b), draft.draws[b]
        by_depth = [[node for node in draws if len(nodes[node]) == depth] for depth in (1, 2, 3)]
        assert [len(level) for level in by_depth] == [1, 2, 2]
        found[nodes[by_depth[2][0]], nodes[by_depth[2][1]]] += 1
    for (first, second), count in found.items():
        assert first[0] == second[0], "one trunk"
        chance = float(law[0, first[0]])
        for path in (first, second):
            chance *= float(law[path[0], path[1]] * law[path[1], path[2]])
        assert abs(count - num * chance) < 6 * (num * chance) ** 0.5 + 6


@pytest.mark.parametrize("name", ["paths", "delayed", "gumbel", "beam"])
def test_the_distributions_are_those_that_the_children_were_drawn_from(name):
    law = random_law(4, 4)
    draft = grown(create("tree", name, **TREES[name]), law, 3, 5)
    for b, parents in enumerate(draft.parents):
        for node in {-1, *parents}:
            last = 0 if node < 0 else draft.ids[b][node]
            torch.testing.assert_close(draft.probs_BGV[b, node + 1], law[last], atol=1e-6, rtol=0)


def test_children_of_probability_zero_are_dropped():
    law = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    for name in ("gumbel", "beam"):
        draft = grown(create("tree", name, **TREES[name]), law, 2, 4)
        for b in range(4):
            assert set(nodes_of(draft, b)) == {(1,), (1, 0), (1, 1)}


def test_of_an_accepted_path_the_cache_keeps_what_was_fed_of_it():
    """The row's last two tokens are fed again in the next round; siblings of the path are dropped."""
    row = Sequence(0, [1, 2, 3, 4], 9)
    draft = Draft(torch.tensor([[10, 11, 12, 13]]), [4], [[-1, -1, 1, 2]])
    fed = FedRow(row, length=4, num_missing=2, draft=draft, place=0, fed_nodes=[2, 3, 4, 5])
    row.emit([11, 12, 13, 20])
    assert fed.kept() == [0, 1, 3, 4], "positions 2 and 3, then the nodes of 11 and 12; 13 and 20 are the last two"
    alone = Sequence(0, [1, 2, 3, 4], 9)
    fed = FedRow(alone, length=4, num_missing=2, draft=draft, place=0, fed_nodes=[2, 3, 4, 5])
    alone.emit([20])
    assert fed.kept() == [0], "nothing was accepted, and of the two that were missing the last is fed again"
