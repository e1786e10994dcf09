"""Selectors in the engine: what they see, and what they may not."""

from __future__ import annotations

from dataclasses import replace

import numpy
import pytest
import torch
from enumeration import Laws
from selector_runs import NUM_NEW, PARAMS, PROMPTS, TEMPERATURE, ByLength, context, decode
from tree_laws import Drafts, completed, emitted_by_draft, independent, table, target

from specdec.conformance.models import greedy, sampled, small_pair
from specdec.core.clock import Clock
from specdec.core.random_numbers import DRAFT, uniforms
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence
from specdec.registry import create
from specdec.selectors.base import Roots, RowShape, Selector
from specdec.selectors.combs import CombLayout
from specdec.selectors.explore import Explorer
from specdec.selectors.roots import roots_of
from specdec.selectors.times import NODES, RoundTimes
from specdec.trees.growth import Growth
from specdec.trees.paths import PathsTree
from specdec.verifiers.specinfer import SpecInferVerifier


@pytest.mark.parametrize(("alignment", "batch"), [("inplace", 1), ("inplace", 5), ("eqspec", 3), ("rollback", 3)])
def test_rows_of_different_shapes_decode_the_tokens_of_plain_decoding(alignment, batch):
    rows = decode(ByLength(), alignment, batch)
    assert len({tuple(row.accepted_lengths) for row in rows}) > 1
    for row in rows:
        plain = (
            greedy(0, "float64", PROMPTS[row.index], NUM_NEW)
            if row.index % 2
            else sampled(0, "float64", PROMPTS[row.index], NUM_NEW, row.index, TEMPERATURE)
        )
        assert row.output_ids == list(plain)


# --- what a selector may not see ------------------------------------------------------------------------------------


class Peeks(Selector):
    """Wrong: it computes the first draw from the row's seed, and does not draft if it dislikes the token."""

    def __init__(self, seeds: dict[int, int]) -> None:
        self.seeds = seeds

    def choose(self, roots: Roots) -> list[RowShape]:
        keys = [(self.seeds[index], index) for index in roots.indices]
        numbers = uniforms(keys, [[length] for length in roots.lengths], DRAFT, [0])[:, 0].tolist()
        return [RowShape(1, 0, 2 if number < 0.5 else 0) for number in numbers]


def shapes_by_seed(selector: Selector, num: int = 64) -> set[RowShape]:
    """The shapes of one root, whatever will be drawn after it."""
    law_V = torch.tensor([0.4, 0.3, 0.2, 0.1]).double()
    rows = [Sequence(i, [0, 1], 100, sampling=SamplingParams(1.0, seed=i)) for i in range(num)]
    found: list[RowShape] = []

    def choose(frontier):
        found.extend(selector.choose(roots_of(frontier, [4] * num)))
        return found

    growth = Growth(PathsTree(num_paths=3), rows, [4] * num, [1] * num, None, choose)
    growth.add(law_V.log().expand(num, 1, -1))
    return set(found)


def test_a_selector_that_knows_the_draws_is_seen():
    assert len(shapes_by_seed(Peeks({i: i for i in range(64)}))) == 2
    for honest in (ByLength(), create("selector", "none", context())):
        assert len(shapes_by_seed(honest)) == 1


def test_a_shape_that_depends_on_the_draws_is_biased():
    """Exactly: no draft where the first token is 0, else a chain; and the same choice by a coin, which is lossless."""
    biases = []
    for seed in range(20):
        laws = Laws.random(seed, 3, 2, (1.0, 0.4)[seed % 2])
        drafts = independent(laws, 0, 1, 2)
        first_R = drafts.draft.tokens_BG[:, 0].numpy()
        for depends in (True, False):
            law = mixed(laws, drafts, numpy.where(first_R == 0, 1.0, 0.0) if depends else numpy.full(len(first_R), 0.3))
            (biases if depends else []).append(law)
            assert depends or law < 1e-12
    assert sum(bias > 1e-3 for bias in biases) > 15


def mixed(laws: Laws, drafts: Drafts, plain_R: numpy.ndarray) -> float:
    """Distance from the target's law if draft r is dropped with probability ``plain_R[r]`` (then a plain token)."""
    weights_R, p_XV = drafts.weights_R, table(laws.p, laws.vocab)
    emitted_XV = numpy.einsum(
        "r,rxv->xv", weights_R * (1 - plain_R), emitted_by_draft(SpecInferVerifier(), laws, drafts)
    )
    emitted_XV[0] += (weights_R * plain_R).sum() * p_XV[0]
    return 0.5 * numpy.abs(completed(emitted_XV, p_XV, laws) - target(p_XV, laws)).sum()


# --- what it does see -----------------------------------------------------------------------------------------------


class Watches(ByLength):
    """Compares the states of every root with forwards over the row alone."""

    reads_states = True

    def __init__(self) -> None:
        self.num_known = 0

    def choose(self, roots: Roots) -> list[RowShape]:
        target, draft = small_pair(0, "float64")
        assert roots.states is not None
        assert [own.seed for own in roots.settings] == [0] * len(roots.lengths)
        for b, known in enumerate(roots.states.known_B):
            tokens = roots.tokens(b)
            assert known == (len(tokens) > 1 and roots.depths[b] > 0)
            if known:
                self.num_known += 1
                hidden_TD = hidden(target, tokens)[0]
                draft_TE, logits_TV = hidden(draft, tokens)
                assert torch.allclose(roots.states.target_hidden_BD[b], hidden_TD[-2])
                assert torch.allclose(roots.states.draft_hidden_B2E[b], draft_TE[-2:])
                assert torch.allclose(roots.states.draft_before_BV[b], logits_TV[-2])
                assert torch.allclose(roots.draft_scores_BV[b].double(), logits_TV[-1], atol=1e-5)
        return super().choose(roots)


def hidden(model, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        out = model.module(torch.tensor([tokens]), output_hidden_states=True)
    return out.hidden_states[-1][0], out.logits[0]


@pytest.mark.parametrize("batch", [1, 4])
def test_states_are_those_of_the_last_two_tokens(batch):
    selector = Watches()
    decode(selector, batch=batch)
    assert selector.num_known > 10


def test_explored_distributions_are_those_of_the_models():
    """At every column of every comb, and again after the rows have grown."""
    target, draft = small_pair(0, "float64")
    layout = CombLayout(2, 3)
    explorer = Explorer(target, draft, layout, 2, Clock())
    texts = [[3, 1, 4, 1], [2], [7, 1, 8]]
    for grown in ([], [5, 6, 2]):
        rows = [[*text, *grown] for text in texts]
        found = explorer.explore([4, 0, 9], rows, [PARAMS] * 3)
        for r in range(6):
            columns = [list(rows[r // 2])]
            for level in range(layout.depth - 1):
                first = 1 + layout.start(level - 1) if level else 0
                for slot, parent in enumerate(layout.parents(level)):
                    token = int(found.combs.tokens_RN[r, layout.start(level) + slot])
                    columns.append([*columns[first + parent], token])
            for model, law_RCV in ((target, found.combs.p_RCV), (draft, found.combs.q_RCV)):
                for column, text in enumerate(columns):
                    wanted = (hidden(model, text)[1][-1].float() / TEMPERATURE).double().softmax(-1)
                    assert torch.allclose(law_RCV[r, column], wanted, atol=1e-6), (r, column)


def test_an_estimate_prefers_no_draft_where_all_fails_and_drafts_where_all_is_accepted():
    """With the target as its own draft every token is accepted, so the deepest shape emits most."""
    for by in ("tokens", "speed"):
        own = replace(context(), draft=small_pair(0, "float64")[0])
        selector = create("selector", "estimate", own, samples=2, by=by)
        if by == "speed":  # forwards of the draft cost nothing, those of the target half as much per node
            times = RoundTimes({1: 0.0, 2: 0.0, 3: 0.0}, {1 + n: 1 + 0.5 * n for n in NODES})
            selector._costs_A = torch.tensor([times.of(shape) for shape in CombLayout(3, 4).shapes]).double()
        rows = decode(selector, greedy_rows=False, verifier="specinfer")
        assert {length for row in rows for length in row.accepted_lengths} <= set(range(5))
    law = torch.zeros(1, 26)
    roots = Roots([0], lambda _: [3, 1, 4], [3], [2], [SamplingParams(1.0)], law)
    assert create("selector", "estimate", own, samples=1, by="tokens").choose(roots)[0].depth == 2
