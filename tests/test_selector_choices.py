"""Selectors in the engine: what they see, what they may not, and which files they refuse."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy
import pytest
import torch
from enumeration import Laws
from harness import ALIGNMENTS
from pretend_cuda import GPU, PretendCuda
from tree_laws import Drafts, completed, emitted_by_draft, independent, table, target

from specdec.conformance.decoding import drafter_context
from specdec.conformance.models import greedy, on_device, sampled, small_pair
from specdec.core.clock import Clock
from specdec.core.random_numbers import DRAFT, uniforms
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence, SequencePool
from specdec.engine.loop import RoundLoop
from specdec.errors import ConfigError
from specdec.registry import create
from specdec.selectors import trained
from specdec.selectors.base import Roots, RowShape, Selector, SelectorContext
from specdec.selectors.combs import CombLayout
from specdec.selectors.explore import Explorer
from specdec.selectors.network import NUM_NUMBERS, SelectorNetwork
from specdec.selectors.roots import roots_of
from specdec.selectors.times import NODES, RoundTimes
from specdec.selectors.trained import save_selector
from specdec.trees.growth import Growth
from specdec.trees.paths import PathsTree
from specdec.verifiers.specinfer import SpecInferVerifier

PROMPTS = [(3, 1, 4, 1, 5, 9), (2,), (7, 1, 8, 2, 8, 1, 8, 2, 8), (5, 5), (1, 6, 1, 8)]
NUM_NEW, TEMPERATURE = 9, 1.3
PARAMS = SamplingParams(TEMPERATURE)


def context(num_paths: int = 3, depth: int = 4, verifier: str = "specinfer", params=PARAMS, pair=None):
    target, draft = small_pair(0, "float64")
    return SelectorContext(num_paths, 1, depth, verifier, params, pair or ["a", "b"], target, draft)


class ByLength(Selector):
    """Shapes that differ by row and round, no draft included."""

    def choose(self, roots: Roots) -> list[RowShape]:
        at = [length % 5 for length in roots.lengths]
        return [RowShape(1 + n % 3, n % 2, min(n, depth)) for n, depth in zip(at, roots.depths, strict=True)]


def decode(selector: Selector | None, alignment="inplace", batch=3, verifier="naive", greedy_rows=True):
    """Decode the prompts; every second row is greedy. Returns the rows and the round loop."""
    target, draft = small_pair(0, "float64")
    clock = Clock()
    own = drafter_context(target, draft, clock, ALIGNMENTS[alignment], [[]])
    own = replace(own, tree=PathsTree(num_paths=3), selector=selector)
    loop = RoundLoop(
        ALIGNMENTS[alignment](target, clock),
        create("drafter", "model", own),
        create("verifier", verifier),
        create("scheduler", "continuous", batch, batch),
        create("draft_length", "fixed", gamma=4),
        clock,
    )
    rows = [
        Sequence(i, list(p), NUM_NEW, sampling=SamplingParams(0.0 if greedy_rows and i % 2 else TEMPERATURE, seed=i))
        for i, p in enumerate(PROMPTS)
    ]
    loop.drafter.prepare(batch)
    pool = SequencePool(rows)
    while not pool.done:
        loop.step(pool)
    return rows


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


# --- files ------------------------------------------------------------------------------------------------------------


def shapes(**changes) -> dict:
    line = {"pair": ["a", "b"], "verifier": "specinfer", "temperature": TEMPERATURE, "batch": 1}
    sizes = {"num_paths": 2, "trunk": 1, "branch": 2}
    return {"shapes": [{**line, **sizes, **changes}, {**line, "batch": 8, "num_paths": 1, "trunk": 0, "branch": 3}]}


def test_a_static_shape_is_that_of_the_nearest_batch_and_no_deeper_than_the_row_may_draft(tmp_path):
    path = tmp_path / "shapes.json"
    path.write_text(json.dumps(shapes()))
    selector = create("selector", "static", context(), path=str(path))
    roots = Roots([0, 1], lambda _: [1], [1, 1], [4, 2], [PARAMS] * 2, torch.zeros(2, 4))
    selector.prepare(2)
    assert selector.choose(roots) == [RowShape(2, 1, 3), RowShape(2, 1, 2)]
    selector.prepare(6)
    assert selector.choose(roots) == [RowShape(1, 0, 3), RowShape(1, 0, 2)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("[]", "no table of shapes"),
        (shapes(num_paths=0), "num_paths=0: it must be a whole number of at least 1"),
        (shapes(trunk=-1), "trunk=-1: it must be a whole number of at least 0"),
        (shapes(branch=9), "2 paths of 10 tokens at batch 1: set tree.num_paths and gamma"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, content, message):
    path = tmp_path / "shapes.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    refused("static", message, context(), path=str(path))


def test_a_table_for_something_else_is_refused(tmp_path):
    path = tmp_path / "shapes.json"
    path.write_text(json.dumps(shapes()))
    refused("static", "measured for another pair", context(pair=["a", "c"]), path=str(path))
    refused("static", "no shape for verifier=spectr, only for specinfer", context(verifier="spectr"), path=str(path))
    refused("static", "no shape for temperature=0.5, only for 1.3", context(params=SamplingParams(0.5)), path=str(path))
    refused("static", "needs selector.path=FILE", context(), path=None)
    refused("estimate", "no formula for the verifier", context(verifier="gbv"), samples=1, by="speed")
    refused("estimate", "selector.samples=0", context(), samples=0, by="speed")
    refused("estimate", "selector.by=size", context(), samples=1, by="size")
    refused("estimate", "set drafter=model", replace(context(), draft=None), samples=1, by="speed")


def refused(name: str, message: str, own: SelectorContext, **settings) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        create("selector", name, own, **settings)
    assert "\n" not in str(error.value)


def untrained(path, pair, temperatures, depth=3):
    """The folder of a selector of random weights, of shapes up to two paths."""
    torch.manual_seed(0)
    layout, numbers = CombLayout(2, depth), NUM_NUMBERS + 2 + len(NODES)
    settings = {
        "selector": "trained",
        "pair": pair,
        "verifier": "specinfer",
        "temperatures": temperatures,
        "num_paths": 2,
        "depth": depth,
        "target_size": 32,
        "draft_size": 32,
        "num_numbers": numbers,
        "usual": [{"temperature": t, "shape": [2, 1, depth]} for t in temperatures],
    }
    save_selector(path, SelectorNetwork(32, 32, numbers, len(layout.shapes)), settings)
    return str(path)


@pytest.fixture
def folder(tmp_path):
    return untrained(tmp_path / "selector", ["a", "b"], [0.5, TEMPERATURE])


def test_a_trained_selector_decodes_and_is_refused_where_it_was_not_trained(folder):
    one, many = (decode(create("selector", "trained", context(), path=folder), batch=n) for n in (1, 5))
    assert [row.output_ids for row in one] == [row.output_ids for row in many]
    assert one[0].output_ids == list(sampled(0, "float64", PROMPTS[0], NUM_NEW, 0, TEMPERATURE))
    refused("trained", "needs selector.path=FOLDER", context(), path=None)
    refused("trained", "no folder of", context(), path=folder + "x")
    refused("trained", "trained for another pair", context(pair=["b", "a"]), path=folder)
    refused("trained", "trained for verifier=specinfer, not verifier=naive", context(verifier="naive"), path=folder)
    refused("trained", "temperature 0.5, 1.3, not 0.7", context(params=SamplingParams(0.7)), path=folder)
    refused("trained", "set tree.num_paths and gamma", context(depth=2), path=folder)
    refused("trained", "set drafter=model", replace(context(), draft=None), path=folder)


@pytest.mark.parametrize("name", ["by_length", "trained", "estimate"])
def test_on_a_gpu_that_is_pretended(folder, name, monkeypatch):
    """Tensors of both devices are never mixed, and shapes are those of the CPU where forwards take the same time."""

    def measured_alike(*args):
        times = measure(*args)
        return RoundTimes(dict.fromkeys(times.draft_s, 1.0), dict.fromkeys(times.target_s, 2.0))

    measure = trained.measure
    monkeypatch.setattr(trained, "measure", measured_alike)

    def run():
        settings = {"trained": {"path": folder}, "estimate": {"samples": 2, "by": "tokens"}}
        selector = ByLength() if name == "by_length" else create("selector", name, context(), **settings[name])
        return [(row.output_ids, row.accepted_lengths, row.num_drafted) for row in decode(selector)]

    expected = run()
    with PretendCuda(), on_device(GPU):
        assert run() == expected
