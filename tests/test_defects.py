"""BSP and DSD: wrong as published, exact once their defects are switched off, one switch at a time."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from cases import nightly_but, short_only
from conftest import VOCAB, greedy_alone, small_llama
from harness import make_engine, run_all
from transformers import GPT2Config, GPT2LMHeadModel

from specdec.alignment.bsp import BspAlignment
from specdec.alignment.dsd import DsdAlignment
from specdec.config.resolve import resolve
from specdec.core.clock import Clock
from specdec.core.round import Draft
from specdec.errors import ConfigError
from specdec.models.causal_lm import CausalLM
from specdec.verifiers.dsd import DsdVerifier
from specdec.verifiers.greedy import GreedyVerifier

NEW = 16
OFF = {"attend_padding": False, "pile_up_padding": False, "absolute_positions": False}
EXACT_VERIFIER = partial(DsdVerifier, keep_rejected=False, no_bonus=False)


@pytest.fixture(scope="module")
def expected(target, prompts):
    return [greedy_alone(target, prompt, NEW, frozenset()) for prompt in prompts]


@pytest.fixture(scope="module")
def even(prompts):
    """Prompts of equal length: nothing is padded before the first rejection."""
    return [(prompt * 9)[:9] for prompt in prompts]


def exact(engine, prompts, expected) -> int:
    rows, _ = run_all(engine, prompts, NEW)
    return sum(row.output_ids == output for row, output in zip(rows, expected, strict=True))


def bsp(**switches):
    return partial(BspAlignment, **switches)


def dsd(**switches):
    return partial(DsdAlignment, **{**OFF, **switches})


@pytest.mark.slow
def test_bsp_as_published_is_wrong_already_at_batch_1(target, draft, prompts, expected):
    for batch in (1, 4):
        assert exact(make_engine(target, draft, batch=batch, alignment=BspAlignment), prompts, expected) <= 4


@pytest.mark.parametrize("scheduler", short_only(["static", "exspec"], "exspec"))
def test_bsp_with_running_counts_is_exact(target, draft, prompts, expected, scheduler):
    engine = make_engine(target, draft, scheduler=scheduler, alignment=bsp(count_padding=False, count_holes=False))
    assert exact(engine, prompts, expected) == len(prompts)


@pytest.mark.nightly
def test_each_bsp_defect_alone_is_wrong(target, draft, prompts, expected, even):
    """Padding needs ragged prompts; holes need a rejection."""
    padding, holes = bsp(count_holes=False), bsp(count_padding=False)
    assert exact(make_engine(target, draft, alignment=padding), prompts, expected) < len(prompts)
    assert exact(make_engine(target, draft, alignment=holes), prompts, expected) < len(prompts)
    assert exact(make_engine(target, draft, batch=1, alignment=padding), prompts, expected) == len(prompts)
    wanted = [greedy_alone(target, prompt, NEW, frozenset()) for prompt in even]
    assert exact(make_engine(target, draft, alignment=padding), even, wanted) == len(even)
    assert exact(make_engine(target, target, alignment=bsp(), gamma=3), even, wanted) == len(even)


def test_dsd_as_published_is_wrong_already_at_batch_1(target, draft, prompts, expected):
    for batch in (1, 4):
        engine = make_engine(
            target,
            draft,
            batch=batch,
            alignment=DsdAlignment,
            verifier=DsdVerifier(keep_rejected=True, no_bonus=True),
            scheduler="lockstep",
            draft_length="lockstep",
        )
        assert exact(engine, prompts, expected) <= 2


@pytest.mark.parametrize("scheduler", short_only(["static", "exspec"], "exspec"))
def test_dsd_without_its_defects_is_exact(target, draft, prompts, expected, scheduler):
    engine = make_engine(target, draft, scheduler=scheduler, alignment=dsd(), verifier=EXACT_VERIFIER())
    assert exact(engine, prompts, expected) == len(prompts)


@pytest.mark.nightly
def test_each_dsd_defect_of_the_alignment(target, draft, prompts, expected):
    """Attended padding is fatal for a ragged batch, and nothing at batch 1. The others are harmless for RoPE."""
    ragged = make_engine(target, draft, alignment=dsd(attend_padding=True))
    assert exact(ragged, prompts, expected) < len(prompts)
    alone = make_engine(target, draft, batch=1, alignment=dsd(attend_padding=True))
    assert exact(alone, prompts, expected) == len(prompts)
    harmless = make_engine(target, draft, alignment=dsd(pile_up_padding=True, absolute_positions=True))
    assert exact(harmless, prompts, expected) == len(prompts)


def test_padding_piles_up(target):
    """Rows that take turns at accepting most: even the longest of them carries padding."""
    piled, stripped = DsdAlignment(target, Clock()), dsd()(target, Clock())
    for alignment in (piled, stripped):
        alignment.admit([0, 1], [[1, 2], [3, 4]])
        for turn in range(4):
            alignment.forward([0, 1], torch.tensor([[5, 6, 7], [5, 6, 7]]))
            alignment.commit([0, 1], [[0, 1, 2], [0]] if turn % 2 else [[0], [0, 1, 2]])
        alignment.forward([0, 1], torch.tensor([[5], [5]]))
    assert list(piled._pads.values()) == [4, 4]
    assert list(stripped._pads.values()) == [0, 0]


@pytest.mark.parametrize("absolute", [True, False])
def test_absolute_positions_are_fatal_where_positions_are_learned(prompts, absolute):
    config = GPT2Config(vocab_size=VOCAB, n_positions=128, n_embd=32, n_layer=2, n_head=4, initializer_range=0.25)
    config.bos_token_id = config.eos_token_id = None
    torch.manual_seed(0)
    model = CausalLM(GPT2LMHeadModel(config).to(torch.float64).eval())
    wanted = [greedy_alone(model, prompt, NEW, frozenset()) for prompt in prompts]
    found = exact(make_engine(model, model, alignment=dsd(absolute_positions=absolute)), prompts, wanted)
    assert (found == len(prompts)) is not absolute


@pytest.mark.parametrize("keep_rejected", [True, False])
@pytest.mark.parametrize("no_bonus", [True, False])
def test_dsd_verifier(keep_rejected, no_bonus):
    """Drafted 1 2 3; the target says 1 9 3 4 in row 0 and 1 2 3 4 in row 1; row 2 drafts nothing."""
    chosen = torch.tensor([[1, 9, 3, 4], [1, 2, 3, 4], [8, 0, 0, 0]])
    logits = torch.nn.functional.one_hot(chosen, 12).double()
    draft = Draft(torch.tensor([[1, 2, 3]] * 3), [3, 3, 0])
    verdict = DsdVerifier(keep_rejected=keep_rejected, no_bonus=no_bonus).verify(draft, logits)
    assert verdict.paths == [[0], [0, 1] if no_bonus else [0, 1, 2], []]
    assert verdict.next_tokens == [2 if keep_rejected else 9, 3 if no_bonus else 4, 8]
    if not keep_rejected and not no_bonus:
        assert verdict == GreedyVerifier().verify(draft, logits)


@pytest.mark.slow
@pytest.mark.parametrize("no_bonus", nightly_but([True, False], False))
def test_keeping_the_rejected_token_is_the_defect_that_breaks_batch_1(target, draft, prompts, expected, no_bonus):
    for keep_rejected in (True, False):
        verifier = DsdVerifier(keep_rejected=keep_rejected, no_bonus=no_bonus)
        found = exact(make_engine(target, draft, batch=1, verifier=verifier), prompts, expected)
        assert (found == len(prompts)) is not keep_rejected


def test_lockstep_truncates_all_but_the_fastest(target, draft, prompts, expected):
    engine = make_engine(target, draft, scheduler="lockstep", draft_length="lockstep")
    rows, rounds = run_all(engine, prompts, NEW)
    truncated = [row for row in rows if row.stop_reason == "truncated"]
    assert truncated
    for row, output in zip(rows, expected, strict=True):
        assert row.output_ids == output[: len(row.output_ids)], "truncated, but not otherwise wrong"
        assert row.finished_s is not None
    assert {row.index for outcome in rounds for row in outcome.finished} == set(range(len(rows)))
    assert all(len(set(outcome.num_drafted)) == 1 for outcome in rounds)
    assert not engine.target._contents, "a truncated row gives its cache back"


def test_lockstep_that_waits_is_exact(target, draft, prompts, expected):
    engine = make_engine(target, draft, scheduler="lockstep", draft_length="lockstep", stop_with_fastest=False)
    assert exact(engine, prompts, expected) == len(prompts)


@pytest.mark.parametrize("name", short_only(["bsp", "dsd"], "dsd"))
def test_known_incorrect_methods_are_refused_unless_asked_for(name):
    from hydra import compose, initialize_config_module

    with initialize_config_module("specdec.conf", version_base="1.3"):
        with pytest.raises(ConfigError, match=f"alignment={name}.*allow_incorrect=true"):
            resolve(compose("config", [f"scheduler={name}"]))
        cfg = resolve(compose("config", [f"scheduler={name}", "allow_incorrect=true"]))
        assert cfg.alignment.name == name
        assert cfg.scheduler.label == name
        assert resolve(compose("config", ["scheduler=eqspec"])).alignment.name == "eqspec"


def test_dsd_refuses_every_defective_part_by_name():
    from hydra import compose, initialize_config_module

    with initialize_config_module("specdec.conf", version_base="1.3"):
        cfg = compose("config", ["scheduler=dsd"])
        with pytest.raises(ConfigError, match="scheduler=lockstep, alignment=dsd, verifier=dsd: known"):
            resolve(cfg)


def test_small_llama_is_rotary():
    """The tests above rely on it: positions count by their differences (to rounding: the angles are float32)."""
    model = CausalLM(small_llama(1, torch.float64))
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.inference_mode():
        near = model.module(tokens, position_ids=torch.arange(5)[None]).logits
        far = model.module(tokens, position_ids=40 + torch.arange(5)[None]).logits
    torch.testing.assert_close(near, far, rtol=0, atol=1e-4)
