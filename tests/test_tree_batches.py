"""Verifiers on batches of random trees: each row as if it were alone, one-hot laws, and what they agree on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import short_only
from torch import Tensor
from tree_variants import PlainTraversal

from specdec.core.round import Draft
from specdec.core.sampling import Noise
from specdec.core.siblings import CHAIN, CHOSEN, IID, WITHOUT_REPLACEMENT
from specdec.core.target_law import TargetLaw
from specdec.errors import ContractError
from specdec.registry import create, lookup, names
from specdec.verifiers.greedy import GreedyVerifier
from specdec.verifiers.traversal import TraversalVerifier

VOCAB = 6


def judging(kind: str) -> list[str]:
    """Verifiers that judge such siblings in sampled rows."""
    entries = [lookup("verifier", name) for name in names("verifier") if not name.startswith("test_")]
    return [entry.name for entry in entries if entry.samples and kind in entry.judges]


CASES = short_only(
    [(kind, name) for kind in (CHAIN, IID, WITHOUT_REPLACEMENT, CHOSEN) for name in judging(kind)],
    *(IID, CHOSEN, (CHAIN, "block"), (CHAIN, "rejection"), (CHAIN, "typical"), (WITHOUT_REPLACEMENT, "recursive")),
)


def random_law(generator: torch.Generator, *shape: int) -> Tensor:
    """Peaky distributions, with zeros."""
    values = torch.rand(*shape, VOCAB, generator=generator).double().pow(4)
    values[torch.rand(values.shape, generator=generator) < 0.2] = 0
    return (values + 1e-9 * (values.sum(-1, keepdim=True) == 0)) / (values.sum(-1, keepdim=True)).clamp(
        min=VOCAB * 1e-9
    )


def grown(kind: str, q_BCV: Tensor, sizes: list[int], generator: torch.Generator) -> Draft:
    """Rows of different shapes and sizes, drawn as the kind says; what stands after a row's nodes is rubbish."""
    rows = [_row(kind, q_BCV[b], size, generator) for b, size in enumerate(sizes)]
    width = max(1, *(len(nodes) for nodes, _ in rows))
    tokens = torch.randint(VOCAB, (len(rows), width), generator=generator)
    probs = q_BCV[:, :width].clone()
    for b, (nodes, _) in enumerate(rows):
        for node, (_, token) in enumerate(nodes):
            tokens[b, node] = token
        inner = {parent + 1 for parent, _ in nodes}
        probs[b, [column for column in range(width) if column not in inner]] = torch.nan
    parents = [[parent for parent, _ in nodes] for nodes, _ in rows]
    draws = [drawn for _, drawn in rows] if kind == IID else None
    return Draft(tokens, list(map(len, parents)), parents, None if kind == CHOSEN else probs, draws)


def _row(kind: str, q_CV: Tensor, size: int, generator: torch.Generator) -> tuple[list[tuple[int, int]], list[int]]:
    nodes: list[tuple[int, int]] = []
    drawn: list[int] = []
    front = [-1]
    while len(drawn) < size and front:
        parent = front.pop(0)
        law, count = q_CV[parent + 1].clone(), 1 if kind == CHAIN else int(torch.randint(1, 4, (), generator=generator))
        names: dict[int, int] = {}
        for _ in range(count):
            if kind == CHOSEN:
                law = torch.ones(VOCAB).double()
                law[list(names)] = 0
            if len(drawn) == size or law.sum() <= 0:
                break
            token = int(torch.multinomial(law, 1, generator=generator))
            if token not in names:
                names[token] = len(nodes)
                nodes.append((parent, token))
            drawn.append(names[token])
            if kind == WITHOUT_REPLACEMENT:
                law[token] = 0
        front += names.values()
    return nodes, drawn


def batch_of(kind: str, sizes: list[int], seed: int) -> tuple[Draft, Tensor, Noise]:
    """Drafts, target laws and random numbers, with rubbish after each row's nodes."""
    generator = torch.Generator().manual_seed(seed)
    columns = max(sizes) + 2
    q, p = (random_law(generator, len(sizes), columns) for _ in range(2))
    draft = grown(kind, q, sizes, generator)
    width = draft.tokens_BG.shape[1]
    for b, count in enumerate(draft.num_drafted):
        p[b, count + 1 :] = torch.nan
    tests = torch.rand(len(sizes), max(width, *sizes), generator=generator).double()
    return draft, p[:, : width + 1], Noise(torch.rand(len(sizes), width + 1, generator=generator).double(), tests)


def alone(draft: Draft, probs: Tensor, noise: Noise, b: int) -> tuple[Draft, Tensor, Noise]:
    """One row, without any padding."""
    count = draft.num_drafted[b]
    draws = None if draft.draws is None else [draft.draws[b]]
    num_tests = count if draws is None else len(draws[0])
    own = Draft(
        draft.tokens_BG[b : b + 1, :count],
        [count],
        [draft.parents[b]],
        None if draft.probs_BGV is None else draft.probs_BGV[b : b + 1, :count],
        draws,
    )
    return (
        own,
        probs[b : b + 1, : count + 1],
        Noise(noise.draws_BT[b : b + 1, : count + 1], noise.tests_BG[b : b + 1, :num_tests]),
    )


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_row_is_decided_as_if_it_were_alone(kind, name):
    """Rows of different shapes, an empty one among them, and rubbish after each row's nodes."""
    verifier, lengths = create("verifier", name), set()
    for seed in range(12):
        given = batch_of(kind, [[7, 0, 4, 9], [1, 12, 3], [0, 0]][seed % 3], seed)
        together = verifier.verify_sampled(*given)
        for b in range(len(together.paths)):
            single = verifier.verify_sampled(*alone(*given, b))
            assert (together.paths[b], together.next_tokens[b]) == (single.paths[0], single.next_tokens[0])
            lengths.add(len(together.paths[b]))
            assert given[1][b, together.paths[b][-1] + 1 if together.paths[b] else 0].isfinite().all()
    assert len(lengths) > 1


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_one_hot_laws_are_the_longest_match(kind, name):
    """A greedy row in a batch that samples: its target is one-hot, its draft drawn, or one-hot with more siblings."""
    verifier, matched = create("verifier", name), 0
    for seed in range(30):
        draft, p, noise = batch_of(kind, [6, 3, 0, 8], seed)
        # Half of the target's choices are among the children, so that walks get somewhere.
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(VOCAB, p.shape[:2], generator=generator)
        for b, row in enumerate(draft.parents):
            for node, parent in enumerate(row):
                if torch.rand((), generator=generator) < 0.5:
                    chosen[b, parent + 1] = draft.tokens_BG[b, node]
        p = torch.nn.functional.one_hot(chosen, VOCAB).double()
        wanted = GreedyVerifier().verify(draft, p.float())
        assert verifier.verify_sampled(draft, p, noise) == wanted
        if draft.probs_BGV is not None and kind != IID:
            # As greedy rows draft: the first child has all the probability, and its siblings none.
            first = torch.zeros_like(draft.probs_BGV)
            for b, row in enumerate(draft.parents):
                for node, parent in enumerate(row):
                    if parent not in row[:node]:
                        first[b, parent + 1, draft.tokens_BG[b, node]] = 1
            assert verifier.verify_sampled(replace(draft, probs_BGV=first), p, noise) == wanted
        matched += sum(map(len, wanted.paths))
    assert matched > 30


@pytest.mark.slow
def test_chains_are_judged_alike_by_the_rules_of_trees():
    """With one path they are not only equal in distribution: the same random numbers decide the same."""
    groups = [("rejection", "specinfer", "naive_tree", "spectr", "recursive"), ("block", "traversal", "gbv")]
    for with_probs in (True, False):
        for seed in range(40):
            draft, p, noise = batch_of(CHAIN, [4, 0, 6, 3, 5, 1], seed)
            draft.probs_BGV = draft.probs_BGV.nan_to_num(1 / VOCAB) if with_probs else None
            draft.parents = None if seed % 2 else draft.parents
            for first, *others in groups:
                expected = create("verifier", first).verify_sampled(draft, p.nan_to_num(1 / VOCAB), noise)
                for name in others:
                    assert create("verifier", name).verify_sampled(draft, p, noise) == expected, name


@pytest.mark.parametrize("kind", short_only([CHAIN, WITHOUT_REPLACEMENT], CHAIN))
def test_traversal_decides_as_its_rule_states(kind):
    """The same verdicts as copies of p, q and w give, on trees of many shapes."""
    for seed in range(40):
        draft, p, noise = batch_of(kind, [9, 0, 4, 12], seed)
        wide = Noise(torch.nn.functional.pad(noise.draws_BT, (0, 1)), torch.nn.functional.pad(noise.tests_BG, (0, 1)))
        assert TraversalVerifier().verify_sampled(draft, p, noise) == PlainTraversal().verify_sampled(draft, p, wide)


class CountingLaw(TargetLaw):
    """Counts the columns that are asked for."""

    num_columns = 0

    def at(self, columns_RN: Tensor, rows: list[int] | None = None) -> Tensor:
        self.num_columns += columns_RN.shape[1]
        return super().at(columns_RN, rows)


@pytest.mark.parametrize("name", ["naive", "naive_tree", "specinfer", "spectr", "recursive", "gbv"])
def test_a_walk_asks_for_one_distribution_per_depth(name):
    draft, p, noise = batch_of(IID, [12, 12, 12], 1)
    law = CountingLaw.of(p)
    create("verifier", name).verify_law(draft, law, noise)
    depth = max(len(draft.path(b, node)) for b in range(3) for node in range(draft.num_drafted[b]))
    assert 0 < law.num_columns <= depth + 1 + (name == "gbv")


@pytest.mark.parametrize("name", ["naive_tree", "specinfer", "spectr", "recursive", "traversal", "gbv"])
def test_siblings_without_probabilities_are_refused(name):
    draft, p, noise = batch_of(CHOSEN, [6, 6], 0)
    assert any(len(set(row)) < len(row) for row in draft.parents)
    with pytest.raises(ContractError, match="verifier=naive"):
        create("verifier", name).verify_sampled(draft, p, noise)
