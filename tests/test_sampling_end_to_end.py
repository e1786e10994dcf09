"""Whole batched rounds that sample: the joint law of several tokens.

A model with a vocabulary of four, whose exact law is computed by transformers alone, context by context. Thousands of
rows share a few ragged prompts and settings and differ in their place, hence in their random stream; they run together
in large batches with a draft that is right some of the time. Every comparison is a chi-square test of the joint law of
all new tokens; the level of the whole file is shared between the tests (Bonferroni), and the seeds are fixed.
"""

from __future__ import annotations

import functools
from collections import Counter

import numpy
import pytest
import torch
from cases import short_only
from sampled_runs import DRAFTERS, GAMMA, TARGET, VERIFIERS, build, run
from scipy.stats import chi2_contingency, chisquare
from test_sampling import theirs

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.core.random_numbers import TEST, uniforms
from specdec.core.sampling import Noise, round_noise
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence
from specdec.drafters.model import ModelDrafter
from specdec.engine import loop as engine_module
from specdec.verifiers.block import BlockVerifier
from specdec.verifiers.naive import NaiveVerifier
from specdec.verifiers.rejection import RejectionVerifier

NEW, COPIES = 4, 1500
PROMPTS = [[1], [0, 2, 2, 3, 1, 0], [3, 3, 1]]
SETTINGS = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.9, top_p=0.97),
    SamplingParams(temperature=1.3, top_k=3, repetition_penalty=1.5),
]
CASES = [
    ("none", "naive", "static", "eqspec"),
    ("model", "block", "exspec", "eqspec"),
    ("lookup", "rejection", "exspec", "masked"),
    *(
        pytest.param(*case, marks=pytest.mark.nightly)
        for case in (
            ("model", "rejection", "exspec", "eqspec"),
            ("model", "naive", "exspec", "eqspec"),
            ("self", "block", "static", "inplace"),
            ("lookup", "block", "static", "eqspec"),
            ("lookup", "naive", "static", "rollback"),
        )
    ),
]
# Three prompts per case, each against the exact law and against plain sampling.
LEVEL = 1e-3 / (len(CASES) * len(PROMPTS) * 2)


@functools.cache
def exact_law(case: int) -> dict[tuple[int, ...], float]:
    """The joint law of the new tokens of a prompt, by transformers alone."""
    prompt, params = PROMPTS[case], SETTINGS[case]
    law: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(NEW):
        longer = {}
        with torch.no_grad():
            logits = TARGET.module(torch.tensor([[*prompt, *text] for text in law])).logits[:, -1]
        for (text, mass), row in zip(law.items(), logits, strict=True):
            for token, chance in enumerate(theirs(params, [*prompt, *text], row).tolist()):
                longer[(*text, token)] = mass * chance
        law = longer
    return law


def rows_of(seed: int = 0, copies: int = COPIES) -> list[Sequence]:
    """Copies of the three prompts, one after the other, each with its own place."""
    settings = [SamplingParams(p.temperature, p.top_k, p.top_p, p.min_p, p.repetition_penalty, seed) for p in SETTINGS]
    return [Sequence(i, list(PROMPTS[i % 3]), NEW, sampling=settings[i % 3]) for i in range(3 * copies)]


def counts_of(rows: list[Sequence], case: int) -> Counter:
    return Counter(tuple(row.output_ids) for row in rows[case::3])


def merged(expected: dict, *observed: Counter) -> list[list[float]]:
    """The same cells for all, rare ones put together so that chi-square holds (expected count 5)."""
    texts = sorted(expected, key=expected.get, reverse=True)
    size = sum(observed[0].values())
    columns = [[expected[t] * size, *(o.get(t, 0) for o in observed)] for t in texts]
    kept = [column for column in columns if column[0] >= 5]
    rest = [sum(values) for values in zip(*columns[len(kept) :], strict=True)]
    if rest and rest[0] >= 5:
        kept.append(rest)
    elif rest:
        kept[-1] = [a + b for a, b in zip(kept[-1], rest, strict=True)]
    return [list(values) for values in zip(*kept, strict=True)]


def p_value(rows: list[Sequence], case: int) -> float:
    """How well the outputs agree with the exact law; 0 where something impossible was emitted."""
    law, observed = exact_law(case), counts_of(rows, case)
    if any(law.get(text, 0.0) == 0 for text in observed):
        return 0.0
    expected, seen = merged(law, observed)
    assert len(seen) > 10, "too few cells to say anything"
    return float(chisquare(seen, numpy.array(expected) * sum(seen) / sum(expected)).pvalue)


@pytest.fixture(scope="module")
def plain_rows() -> list[Sequence]:
    """Plain sampling with another seed: the second sample of the two-sample tests."""
    return run(build("none", NaiveVerifier, "static", "eqspec", 300), rows_of(seed=1))


@pytest.mark.parametrize(("drafter", "verifier", "scheduler", "alignment"), short_only(CASES, "model", ci=["none"]))
def test_the_joint_law_of_the_output(drafter, verifier, scheduler, alignment, plain_rows):
    rows = run(build(drafter, VERIFIERS[verifier], scheduler, alignment, 300), rows_of())
    for case in range(len(PROMPTS)):
        assert p_value(rows, case) > LEVEL
        table = merged(exact_law(case), counts_of(rows, case), counts_of(plain_rows, case))[1:]
        assert chi2_contingency(table).pvalue > LEVEL
    if drafter == "model":
        accepted = Counter(length for row in rows for length in row.accepted_lengths)
        assert all(accepted[length] > 100 for length in range(GAMMA + 1)), "every length of acceptance must occur"


# --- the same tests must see planted mistakes ------------------------------------------------------------------------


class RecoveredFromTarget(RejectionVerifier):
    def next_probs(self, draft, probs_BTV, acceptance, tau_B):
        return probs_BTV[torch.arange(len(tau_B)), tau_B]


def noise_by_position(rows, num_columns, device, num_tests=None):
    """Wrong: block verification looks at tests behind what it accepts, and would meet them again in the next round."""
    keys = [(row.sampling.seed, row.index) for row in rows]
    places = [range(row.length, row.length + num_columns - 1) for row in rows]
    tests = uniforms(keys, places, TEST, [0] * (num_columns - 1))
    return Noise(round_noise(rows, num_columns, device).draws_BT, tests)


def shared_noise(rows, num_columns, device, num_tests=None):
    """Wrong: one stream for the batch, so that rows of a batch do the same."""
    first = round_noise(rows[:1], num_columns, device)
    return Noise(first.draws_BT.repeat(len(rows), 1), first.tests_BG.repeat(len(rows), 1))


class UnprocessedDraft(ModelDrafter):
    """Wrong: hands over the law before temperature and cuts, but samples after."""

    def propose(self, rows, gammas):
        draft = super().propose(rows, gammas)
        if draft.probs_BGV is not None:
            draft.probs_BGV = draft.probs_BGV.sqrt() / draft.probs_BGV.sqrt().sum(-1, keepdim=True)
        return draft


class ClaimsToSample(ModelDrafter):
    """Wrong: takes the argmax, and hands over the law as if it had been drawn."""

    def propose(self, rows, gammas):
        draft = super().propose(rows, gammas)
        if draft.probs_BGV is not None:
            draft.tokens_BG = draft.probs_BGV.argmax(-1)
        return draft


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mistake", "copies"),
    [
        ("recovered from p", COPIES),
        # A small bias, and it only begins with the second round.
        pytest.param("tests by position", 4 * COPIES, marks=pytest.mark.nightly),
        pytest.param("one stream", COPIES, marks=pytest.mark.nightly),
        pytest.param("draft unprocessed", COPIES, marks=pytest.mark.nightly),
        pytest.param("argmax draft", COPIES, marks=pytest.mark.nightly),
    ],
)
def test_planted_mistakes_are_seen(monkeypatch, mistake, copies):
    verifier = RecoveredFromTarget if mistake == "recovered from p" else BlockVerifier
    noises = {"tests by position": noise_by_position, "one stream": shared_noise}
    if mistake in noises:
        monkeypatch.setattr(engine_module, "round_noise", noises[mistake])
    drafters = {"draft unprocessed": UnprocessedDraft, "argmax draft": ClaimsToSample}
    monkeypatch.setitem(DRAFTERS, "model", drafters.get(mistake, ModelDrafter))
    rows = run(build("model", verifier, "static", "eqspec", 500), rows_of(copies=copies))
    assert min(p_value(rows, case) for case in range(len(PROMPTS))) < LEVEL


@pytest.mark.slow
@pytest.mark.parametrize("copies", [COPIES, pytest.param(4 * COPIES, marks=pytest.mark.nightly)])
def test_without_a_mistake_nothing_is_seen_in_as_many_rows(copies):
    rows = run(build("model", BlockVerifier, "static", "eqspec", 500), rows_of(copies=copies))
    assert min(p_value(rows, case) for case in range(len(PROMPTS))) > LEVEL
