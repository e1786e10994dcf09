"""Rows that sample: the same tokens alone and in any batch, whatever is drafted, and greedy ones beside them."""

from __future__ import annotations

import functools
import itertools
import random

import pytest
import torch
from cases import short_only
from conftest import greedy_alone, perturbed, small_llama
from harness import ALIGNMENTS
from sampled_runs import VERIFIERS, build, run

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence
from specdec.models.causal_lm import CausalLM
from specdec.verifiers.block import BlockVerifier
from specdec.verifiers.naive import NaiveVerifier
from specdec.verifiers.rejection import RejectionVerifier

BIG = (CausalLM(small_llama(0, torch.float64)), CausalLM(perturbed(small_llama(0, torch.float64), 0.04)))
BIG_NEW = 16


def big_rows(prompts: list[list[int]], order: list[int] | None = None) -> list[Sequence]:
    """Ragged prompts, each row with settings of its own, greedy ones among them."""
    settings = [
        None,
        SamplingParams(temperature=0.8, seed=3),
        SamplingParams(temperature=1.0, top_k=8, top_p=0.9, seed=4),
        SamplingParams(temperature=0.0, repetition_penalty=1.4),
        SamplingParams(temperature=1.2, min_p=0.05, repetition_penalty=1.2, seed=2**40),
    ]
    rows = [Sequence(i, list(p), BIG_NEW, sampling=settings[i % 5]) for i, p in enumerate(prompts)]
    return [rows[i] for i in order] if order else rows


def ids(rows: list[Sequence]) -> list[list[int]]:
    return [row.output_ids for row in sorted(rows, key=lambda row: row.index)]


@functools.cache
def serial(drafter: str, verifier: str, prompts: tuple[tuple[int, ...], ...]) -> list[list[int]]:
    """Every row by itself, each in an engine of its own."""
    outputs = []
    for row in big_rows([list(p) for p in prompts]):
        outputs += ids(run(build(drafter, VERIFIERS[verifier], "static", "eqspec", 1, models=BIG), [row]))
    return outputs


SHORT = (("model", "block"), ("lookup", "rejection"), ("trigram", "block"), ("self", "block"))
MIXED = [
    pytest.param(drafter, verifier, marks=() if (drafter, verifier) in SHORT else pytest.mark.nightly)
    for drafter, verifier in itertools.product(["model", "self", "lookup", "trigram"], VERIFIERS)
    if drafter in ("model", "lookup") or verifier == "block"
]


@pytest.mark.parametrize(
    ("drafter", "verifier"), short_only([("none", "naive"), *MIXED], ("model", "block"), ci=["none"])
)
def test_a_row_gives_the_same_tokens_alone_and_in_any_batch(drafter, verifier, prompts):
    wanted = serial(drafter, verifier, tuple(map(tuple, prompts)))
    assert sum(len(set(output)) > 5 for output in wanted) > 6, "outputs must vary to tell anything"
    shuffled = list(range(len(prompts)))
    random.Random(5).shuffle(shuffled)
    for batch, scheduler, alignment, order in [
        (3, "static", "eqspec", None),
        (4, "exspec", "inplace", shuffled),
        (11, "static", "masked", shuffled),
    ]:
        engine = build(drafter, VERIFIERS[verifier], scheduler, alignment, batch, models=BIG)
        assert ids(run(engine, big_rows(prompts, order))) == wanted, (batch, scheduler, alignment)


@pytest.mark.parametrize("alignment", [name for name in ALIGNMENTS if name != "eqspec"])
@pytest.mark.parametrize("scheduler", short_only(["static", "exspec"], "static"))
def test_block_verification_gives_the_same_tokens_with_every_alignment(alignment, scheduler, prompts):
    engine = build("model", BlockVerifier, scheduler, alignment, 5, models=BIG)
    assert ids(run(engine, big_rows(prompts))) == serial("model", "block", tuple(map(tuple, prompts)))


@pytest.mark.parametrize("drafter", short_only(["model", "self", "lookup", "trigram"], "self", "lookup"))
def test_naive_verification_gives_plain_samplings_own_tokens(drafter, prompts):
    """Each position's token is drawn from p by that position's number, however it was drafted."""
    wanted = serial("none", "naive", tuple(map(tuple, prompts)))
    rows = run(build(drafter, NaiveVerifier, "exspec", "eqspec", 4, models=BIG), big_rows(prompts))
    assert ids(rows) == wanted
    assert sum(row.num_accepted for row in rows) > 0


def test_seeds_and_places_give_other_tokens(prompts):
    """The stream is really used: another seed, or another place, and the output changes."""
    prompt = prompts[6]
    rows = [Sequence(i, list(prompt), 16, sampling=SamplingParams(seed=s)) for i, s in enumerate([0, 0, 1, 1])]
    assert (
        len(
            {
                tuple(row.output_ids)
                for row in run(build("none", NaiveVerifier, "static", "eqspec", 4, models=BIG), rows)
            }
        )
        == 4
    )


def test_greedy_rows_are_unmoved_by_their_sampling_neighbours(prompts):
    """Row 0 and 5, 10 are greedy: transformers' own greedy output, whatever happens around them."""
    rows = run(build("model", BlockVerifier, "static", "eqspec", 11, models=BIG), big_rows(prompts))
    for row in rows[::5]:
        assert row.output_ids == greedy_alone(BIG[0], row.prompt_ids, BIG_NEW, frozenset())


def test_a_greedy_row_with_a_penalty_is_transformers_own(prompts):
    rows = run(build("model", RejectionVerifier, "exspec", "eqspec", 4, models=BIG), big_rows(prompts))
    for row in rows[3::5]:
        wanted = BIG[0].module.generate(
            torch.tensor([row.prompt_ids]),
            attention_mask=torch.ones(1, len(row.prompt_ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=BIG_NEW,
            repetition_penalty=1.4,
            pad_token_id=0,
        )
        assert row.output_ids == wanted[0, len(row.prompt_ids) :].tolist()
