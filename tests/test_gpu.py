"""Every plug-in decodes on a GPU, as far as that shows without one: on tensors that pretend to be there.

Outputs must equal the CPU's, and no call may mix devices. Cases come from the registry, so that a new plug-in is here
by itself. Speed, kernels and compiled code are for a real GPU: `python -m specdec.bench suite=gpu`.
"""

from __future__ import annotations

import runpy
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import nightly_but, short_only
from pretend_cuda import GPU, NAME, PretendCuda, on_gpu

import specdec
from specdec import registry
from specdec.alignment.checked import CheckedAlignment
from specdec.bench.checks import OF_A_PAIR
from specdec.conformance import GROUPS, examine
from specdec.conformance.costs import assumed_costs
from specdec.conformance.decoding import drafter_context
from specdec.conformance.models import greedy, letter_tokenizer, on_device, small_llama, small_pair
from specdec.core.clock import Clock
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence, SequencePool
from specdec.engine.loop import RoundLoop
from specdec.equivalence.near_ties import classify_divergence
from specdec.models.causal_lm import CausalLM
from specdec.run import forward_bound
from specdec.run.reference_outputs import generate_alone

ROOT = Path(__file__).parent.parent
PROMPTS = [(3, 1, 4, 1, 5, 9), (2,), (7, 1, 8, 2, 8, 1, 8, 2, 8), (5, 5), (1, 6, 1, 8)]
NUM_NEW = 14
USUAL = {
    "alignment": "inplace",
    "drafter": "model",
    "tree": "chain",
    "verifier": "greedy",
    "scheduler": "continuous",
} | {
    "draft_length": "fixed",
    "budget": "none",
}
SAMPLED = SamplingParams(temperature=1.3, seed=5)
registry.load_entry_points()
PLUGINS = [(g, name) for g in GROUPS for name in registry.names(g) if f"{g}={name}" not in OF_A_PAIR]
IN_CI = [("alignment", "eqspec"), ("drafter", "model"), ("tree", "static"), ("tree", "chain"), ("budget", "top_max_q")]
IN_CI += [("verifier", "block"), ("verifier", "traversal"), ("scheduler", "continuous"), ("scheduler", "exspec")]
IN_CI += [("drafter", name) for name in ("ppd", "prompt_lookup", "early_exit", "retokenize")]
"""Which CI decodes with on the pretended GPU, beside the short ones; every night it is each plug-in."""
KIT = {("verifier", "greedy")}
"""Whose kit CI runs there; the others run every night."""
SHORT = [("alignment", "inplace"), ("drafter", "model"), ("tree", "beam"), ("selector", "estimate")]
SHORT += [("verifier", "block"), ("scheduler", "lockstep"), ("budget", "own_q"), ("draft_length", "goodput")]
"""One of each kind, which the short tests run there."""


def settings_of(group: str, name: str) -> dict[str, bool]:
    """Heads need no training to be run."""
    untrained = any(part.name == "untrained" for part in fields(registry.lookup(group, name).config))
    return {"untrained": True} if untrained else {}


def prepared(group: str, name: str, batch: int, gamma: int) -> Any:
    """A policy that has measured assumed costs."""
    settings = {part.name for part in fields(registry.lookup(group, name).config)}
    policy = registry.create(group, name, **({"gamma": gamma} if "gamma" in settings else {}))
    with assumed_costs() as profiler:
        policy.prepare(profiler, batch)
    return policy


def engine_of(
    place: torch.device, *, batch=2, gamma=3, execution="eager", wrap=None, chunk=None, **chosen
) -> RoundLoop:
    """An engine of the named plug-ins over the kit's small models on a device."""
    names = {**USUAL, **chosen}
    with on_device(place):
        target, draft = small_pair(0, "float64")
        truth = [greedy(0, "float64", prompt, NUM_NEW + 4) for prompt in PROMPTS]
    for model in (target, draft):
        model.execute(execution)
    clock = Clock(torch.cuda.synchronize if place.type == "cuda" else None)
    align = partial(registry.create, "alignment", names["alignment"])
    context = replace(drafter_context(target, draft, clock, align, truth), tree=registry.create("tree", names["tree"]))
    return RoundLoop(
        (wrap or (lambda alignment, model: alignment))(align(target, clock), target),
        registry.create("drafter", names["drafter"], context, **settings_of("drafter", names["drafter"])),
        registry.create("verifier", names["verifier"]),
        registry.create("scheduler", names["scheduler"], batch, batch + 1),
        prepared("draft_length", names["draft_length"], batch, gamma),
        clock,
        prefill_chunk=chunk,
        budget=prepared("budget", names["budget"], batch, gamma),
    )


def rows_of(sampling: SamplingParams | None = None, stop_ids: frozenset[int] = frozenset()) -> list[Sequence]:
    own = [sampling and replace(sampling, seed=sampling.seed + i) for i in range(len(PROMPTS))]
    return [Sequence(i, list(p), NUM_NEW - 2 * i, stop_ids, own[i]) for i, p in enumerate(PROMPTS)]


def outputs(place: torch.device, sampling=None, stop_ids=frozenset(), **settings) -> list[list[int]]:
    engine, rows = engine_of(place, **settings), rows_of(sampling, stop_ids)
    pool = SequencePool(rows)
    while not pool.done:
        engine.step(pool)
    return [row.output_ids for row in rows]


def assert_same(**settings) -> None:
    expected = outputs(torch.device("cpu"), **{**settings, "execution": "eager"})
    with PretendCuda():
        assert outputs(GPU, **settings) == expected


@pytest.mark.parametrize(("group", "name"), short_only(PLUGINS, *SHORT, ci=IN_CI))
def test_every_plug_in(group, name):
    """Known incorrect ones too: they are to be as wrong as on a CPU."""
    samples = group == "verifier" and registry.create(group, name).samples
    assert_same(**{group: name}, sampling=SAMPLED if samples else None)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=0.0, repetition_penalty=1.4),
        SamplingParams(temperature=0.8, top_k=5, repetition_penalty=0.7),
        pytest.param(SamplingParams(temperature=1.5, top_p=0.8), marks=pytest.mark.slow),
        pytest.param(SamplingParams(temperature=1.0, min_p=0.1), marks=pytest.mark.slow),
    ],
    ids=lambda params: f"temperature {params.temperature}",
)
@pytest.mark.parametrize("drafter", ["model", pytest.param("medusa", marks=pytest.mark.slow)])
def test_every_option_of_sampling(sampling, drafter):
    assert_same(drafter=drafter, verifier="greedy" if sampling.greedy else "block", sampling=sampling)


@pytest.mark.slow
@pytest.mark.parametrize(
    "drafter", nightly_but(registry.names("drafter"), "model", "eagle3", "ppd", "prompt_lookup", "retokenize")
)
def test_every_drafter_under_sampled_rows(drafter):
    assert_same(drafter=drafter, verifier="naive", sampling=SAMPLED)


@pytest.mark.parametrize("execution", short_only(["fused", "compiled"], "compiled"))
def test_every_execution(execution):
    """Compiled code is out of sight of a mode of torch: here its functions run as they are written, uncompiled."""
    assert_same(execution=execution)
    assert_same(execution=execution, drafter="eagle")


@pytest.mark.parametrize("alignment", registry.names("alignment"))
@pytest.mark.slow
def test_every_alignment_with_trees_and_masks(alignment):
    assert_same(alignment=alignment, drafter="ppd", stop_ids=frozenset({3, 8}))


def test_prompts_in_chunks_refilled_places_and_one_row():
    assert_same(chunk=2, batch=3, scheduler="continuous", drafter="ppd")
    assert_same(batch=1, gamma=0)


def test_debug_invariants():
    def wrap(alignment, model):
        return CheckedAlignment(alignment, model)

    assert_same(wrap=wrap, batch=2)


def test_the_example_plug_ins(own_plugins):
    for group, name in (("alignment", "recompute"), ("drafter", "bigram"), ("scheduler", "round_robin")):
        if name not in registry.names(group):
            runpy.run_path(str(ROOT / "experiments" / f"plugin_{group}" / f"specdec_{name}.py"))
        assert_same(**{group: name})


@pytest.mark.parametrize(
    ("group", "name"),
    [pytest.param(*plugin, marks=pytest.mark.slow if plugin in KIT else pytest.mark.nightly) for plugin in PLUGINS],
)
def test_the_kit(group, name):
    if registry.lookup(group, name).known_incorrect:
        pytest.skip("breaks its promises on any device")
    with PretendCuda():
        findings = examine(group, name, settings_of(group, name), scale=0.02, shrink=False, accelerator="cuda")
    assert [(finding.promise, finding.detail) for finding in findings if not finding.kept] == []


# --- the library and runs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def modules():
    """A target and a draft that pretend to be on a GPU, and the same target on the CPU."""
    target, draft = small_llama(0, torch.float64), small_llama(0, torch.float64, layers=1)
    with PretendCuda():
        return small_llama(0, torch.float64).to("cuda"), draft.to("cuda"), target


@pytest.mark.parametrize("draft", ["model", "prompt_lookup", pytest.param("self", marks=pytest.mark.slow), None])
def test_generate_and_stream(modules, draft):
    """Prompts as lists and as a padded block, stop strings, and sampled rows that end where the CPU's do."""
    target, small, reference = modules
    prompts, options = [list(prompt) for prompt in PROMPTS], {"max_new_tokens": NUM_NEW, "pad_token_id": 0}
    ended = {
        "stop_strings": ["k"],
        "do_sample": True,
        "top_k": 9,
        "seed": 1,
        "return_dict_in_generate": True,
        **options,
    }
    plain = specdec.Engine(reference, None, tokenizer=letter_tokenizer(), verifier="naive")
    expected, texts = plain.generate(prompts, **options), plain.generate(prompts, **ended).texts
    with PretendCuda():
        small = small if draft == "model" else draft
        engine = specdec.Engine(target, small, tokenizer=letter_tokenizer(), verifier="naive")
        found = engine.generate(prompts, batch=2, **options)
        assert on_gpu(found)
        assert found.tolist() == expected.tolist()
        again = engine.generate(found[:, :-NUM_NEW], attention_mask=(found[:, :-NUM_NEW] > 0).long(), **options)
        assert again.tolist() == expected.tolist()
        new = {b: [] for b in range(len(prompts))}
        for event in engine.stream(prompts, **options):
            new[event.row] += event.tokens
        assert list(new.values()) == expected[:, -NUM_NEW:].tolist()
        assert engine.generate(prompts, **ended).texts == texts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_differences_are_explained_by_the_same_figures(dtype):
    """Rounding is measured on the device; a planted difference gets the CPU's explanation."""

    def explained(place):
        model = CausalLM(small_llama(0, dtype).to(place))
        model.execute("fused")
        row = Sequence(0, list(PROMPTS[0]), 6)
        generate_alone(model.module, row)
        logits_V = model.module(torch.tensor([row.prompt_ids], device=place)).logits[0, -1].detach().double().cpu()
        wrong = [int(logits_V.argsort()[-2]), *row.output_ids[1:]]
        return classify_divergence(model, row.prompt_ids, wrong, row.output_ids, logits_V, batch=2, chunk=3)

    expected = explained(torch.device("cpu"))
    with PretendCuda():
        assert explained(GPU) == expected
    assert expected["noise"] > 0


RUNS = {
    "goodput": ("bound=true", "debug=invariants"),
    "batch_table": ("scheduler=eqspec",),
    "lockstep": ("scheduler=exspec", "temperature=0.8", "verifier=naive"),
    "fixed": ("runner.dtype=bfloat16", "execution=fused", "scheduler=continuous"),
}


@pytest.mark.parametrize(
    "draft_length",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "goodput" else pytest.mark.nightly)
        for name in registry.names("draft_length")
    ],
)
def test_a_run(run, tmp_path, monkeypatch, draft_length):
    """The whole of a point: memory counters, clocks that synchronise, reference outputs, profiles, the bound."""
    for sizes in (forward_bound.COPIED_NUMBERS, forward_bound.PRODUCT_SIZE):
        monkeypatch.setitem(sizes, "cuda", sizes["cpu"])
    small = ("pair=synthetic", "pair.hidden_size=64", "pair.num_layers=3", "data.num_prompts=4")
    settings = (*small, "max_new_tokens=10", "batch=2", "progress=false", "runner.accelerator=cuda", "strict=true")
    with PretendCuda() as gpu:
        code, out, err = run(*settings, f"draft_length={draft_length}", *RUNS.get(draft_length, ()))
    assert code == 0, err
    assert "4/4" in out
    assert gpu.num_synchronized > 0
    assert all(NAME in path.read_text() for path in tmp_path.glob("results/*/env*.json"))
