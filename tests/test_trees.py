"""Trees: the laws of their growth, and that every tree decodes what plain decoding does."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from cases import all_pairs
from harness import ALIGNMENTS

from specdec.conformance.decoding import drafter_context
from specdec.conformance.models import greedy, sampled, small_pair
from specdec.core.clock import Clock
from specdec.core.round import Draft
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence, SequencePool
from specdec.draft_lengths.base import DraftLength
from specdec.engine.loop import RoundLoop
from specdec.engine.output import Event
from specdec.errors import ConfigError
from specdec.registry import create, names
from specdec.trees.base import Tree
from specdec.trees.drawing import draw_distinct
from specdec.trees.growth import Growth
from specdec.trees.measured import chances_of
from specdec.trees.shape import Shape, best_shape, expected_accepted, read_shape

TREES = {
    "chain": {},
    "paths": {"num_paths": 3},
    "delayed": {"num_paths": 3, "trunk": 1},
    "gumbel": {"branches": [3, 2, 1]},
    "beam": {"width": 3},
    "confidence": {"top_k": 3, "num_nodes": 7},
    "static": {"num_nodes": 7},
}
PROMPTS = [(3, 1, 4, 1, 5, 9), (2,), (7, 1, 8, 2, 8, 1, 8, 2, 8), (5, 5), (1, 6, 1, 8), (9, 9, 1), (4,), (2, 7, 1)]
NUM_NEW = 9
TEMPERATURE = 1.3


def test_every_tree_is_tried():
    assert set(TREES) == set(names("tree"))


# --- the laws of the growth ---------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("probs", [[0.5, 0.1, 0.0, 0.4], [0.25] * 4, [0.97, 0.01, 0.01, 0.01], [0.0, 0.6, 0.4, 0.0]])
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


# --- decoding -----------------------------------------------------------------------------------------------------


class ByRow(DraftLength):
    """Depths that differ by row and round, 0 included."""

    def choose(self, rows: list[Sequence]) -> list[int]:
        return [(row.index + len(row.accepted_lengths) + 2) % 4 for row in rows]


def decode(
    tree: str, drafter="model", alignment="inplace", batch=4, *, mixed=False, execution="eager", dtype="float64"
) -> list[Sequence]:
    """Decode the prompts; with ``mixed`` every second row samples, the others are greedy."""
    target, draft = small_pair(0, dtype)
    for model in (target, draft):
        model.execute(execution)
    clock = Clock()
    context = replace(
        drafter_context(target, draft, clock, ALIGNMENTS[alignment], [[]]), tree=create("tree", tree, **TREES[tree])
    )
    params = {"untrained": True} if drafter != "model" else {}
    loop = RoundLoop(
        ALIGNMENTS[alignment](target, clock),
        create("drafter", drafter, context, **params),
        create("verifier", "naive" if mixed else "greedy"),
        create("scheduler", "continuous", batch, batch + 1),
        ByRow(),
        clock,
    )
    rows = []
    for i, prompt in enumerate(PROMPTS):
        sampling = SamplingParams(TEMPERATURE if i % 2 else 0.0, seed=i) if mixed else None
        rows.append(Sequence(i, list(prompt), NUM_NEW, sampling=sampling))
    pool = SequencePool(rows)
    while not pool.done:
        loop.step(pool)
    return rows


def truth(index: int, mixed: bool, dtype: str = "float64") -> list[int]:
    if mixed and index % 2:
        return list(sampled(0, dtype, PROMPTS[index], NUM_NEW, index, TEMPERATURE))
    return list(greedy(0, dtype, PROMPTS[index], NUM_NEW))


@pytest.mark.parametrize(
    ("tree", "alignment", "batch", "drafter", "mixed"),
    all_pairs(
        list(TREES), list(ALIGNMENTS), [1, 4, 8], [("model", False), ("model", True), ("eagle", True), ("eagle3", True)]
    ),
)
def test_every_tree_decodes_the_tokens_of_plain_decoding(tree, alignment, batch, drafter, mixed):
    """Greedy rows the argmax; sampled rows, under verifier=naive, the tokens of plain sampling."""
    rows = decode(tree, drafter, alignment, batch, mixed=mixed)
    assert [row.output_ids for row in rows] == [truth(row.index, mixed) for row in rows]


@pytest.mark.parametrize("execution", ["fused", "native"])
def test_trees_under_the_fast_executions(execution):
    for tree in ("paths", "beam"):
        rows = decode(tree, mixed=True, execution=execution, dtype="float32")
        assert [row.output_ids for row in rows] == [truth(row.index, True, "float32") for row in rows]


@pytest.mark.parametrize("tree", list(TREES))
def test_a_row_drafts_the_same_alone_and_in_a_batch(tree):
    """What is accepted and drafted per row, not only what is emitted."""
    alone, together = (decode(tree, batch=batch, mixed=True) for batch in (1, 8))
    assert [(r.accepted_lengths, r.num_drafted) for r in alone] == [
        (r.accepted_lengths, r.num_drafted) for r in together
    ]


def test_full_acceptance_of_a_tree_is_a_path_that_ends_in_a_leaf():
    draft = Draft(torch.tensor([[5, 6, 7, 8]]), [4], [[-1, -1, 0, 2]])
    assert [draft.end_depth(0, path) for path in ([], [0], [1], [0, 2], [0, 2, 3])] == [3, 3, 1, 3, 3]
    assert draft.ranks(0, [0, 2]) == [0, 0]
    assert draft.ranks(0, [1]) == [1]
    kinds = [Event(0, [1] * (n + 1), n, 4, None, end).kinds[-1] for n, end in ((0, 3), (1, 1), (2, 3), (3, 3))]
    assert kinds == ["recovered", "bonus", "recovered", "bonus"]


def test_a_round_knows_nodes_depths_and_ranks():
    target, draft = small_pair(0, "float64")
    clock = Clock()
    context = drafter_context(target, draft, clock, ALIGNMENTS["inplace"], [[]])
    context = replace(context, draft=target, tree=create("tree", "gumbel", branches=[2, 2]))
    loop = RoundLoop(
        ALIGNMENTS["inplace"](target, clock),
        create("drafter", "model", context),
        create("verifier", "greedy"),
        create("scheduler", "continuous", 1, 1),
        create("draft_length", "fixed", gamma=5),
        clock,
    )
    outcome = loop.step(SequencePool([Sequence(0, [3, 1, 4], 9)]))
    assert (outcome.num_drafted, outcome.depths, outcome.end_depths, outcome.num_accepted) == ([6], [2], [2], [2])
    assert outcome.ranks == [[0, 0]], "the draft is the target"


# --- shapes and settings ------------------------------------------------------------------------------------------


def test_the_best_shape_has_the_most_expected_tokens():
    chances = [[0.6, 0.3], [0.5, 0.4], [0.5]]
    shape = best_shape(chances, 4)
    assert shape == Shape([-1, -1, 0, 0], [0, 1, 0, 1])
    assert expected_accepted(shape, chances) == pytest.approx(0.6 + 0.3 + 0.3 + 0.24)
    others = (Shape([-1, 0, 1, -1], [0, 0, 0, 1]), Shape([-1, -1, 0, 1], [0, 1, 0, 0]))
    assert all(expected_accepted(other, chances) < expected_accepted(shape, chances) for other in others)


def test_acceptance_by_rank_is_read_from_recorded_rounds():
    lines = [
        {"accepted_ranks": [[0, 1], [], [1]], "end_depth": [2, 2, 1]},
        {"accepted_ranks": None, "end_depth": [3]},
    ]
    assert chances_of(lines) == [[1 / 3, 1 / 3], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"parents": [-1, 2, 1], "ranks": [0, 0, 0]}', "nodes 1 -> 2 -> 1 are a cycle"),
        ('{"parents": [-1, 2, 0], "ranks": [0, 0, 0]}', "node 1 comes before its parent 2"),
        ('{"parents": [-1, 0, 0], "ranks": [0, 1, 1]}', "nodes 1 and 2 are the same: rank 1 after node 0"),
        ('{"parents": [-1, 5], "ranks": [0, 0]}', "node 1 has parent 5"),
        ('{"parents": [-1], "ranks": [0, 1]}', "1 parents and 2 ranks"),
        ('{"parents": [-1, -1], "ranks": [0, 1.5]}', "lists of integers"),
        ('{"parents": [-1, -1], "ranks": [0, 5000]}', "rank 5000; at most"),
        ("[1, 2]", "JSON"),
    ],
)
def test_a_file_that_holds_no_tree_is_refused(tmp_path, content, message):
    path = tmp_path / "tree.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        read_shape(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tree", "settings"),
    [
        ("paths", {"num_paths": 0}),
        ("gumbel", {"branches": []}),
        ("gumbel", {"branches": [2, 0]}),
        ("beam", {"width": 0}),
        ("confidence", {"num_nodes": 0}),
        ("static", {"num_nodes": 0}),
        ("static", {"path": "nowhere.json"}),
        ("delayed", {"trunk": -1}),
        ("delayed", {"trunk": 5}),
    ],
)
def test_settings_that_make_no_tree_are_refused(tree, settings):
    with pytest.raises(ConfigError, match=rf"tree\.{next(iter(settings))}="):
        create("tree", tree, **settings).check(5)
