"""Losslessness by exact enumeration, and the wrong rules that it must reject (algorithms.md 0.1, 1, 2.1, 4.1)."""

from __future__ import annotations

import numpy
import pytest
import torch
from cases import short_only
from enumeration import Context, Laws, chain_draft, integrate, integrate_draws, laws_argmax
from scipy.stats import chisquare

from specdec.core.random_numbers import DRAFT, DRAW, TEST, uniforms
from specdec.core.round import Draft
from specdec.core.sampling import Noise
from specdec.verifiers.block import BlockVerifier, running_weight
from specdec.verifiers.chain import AcceptanceProbs, ratios
from specdec.verifiers.naive import NaiveVerifier
from specdec.verifiers.rejection import RejectionVerifier
from specdec.verifiers.typical import TypicalVerifier

EXACT = 1e-12
SHAPES = [(3, 1), (3, 2), (3, 3), (4, 2), (4, 3), (5, 1), (5, 2)]
# 48 pairs: flat and peaky, with and without zeros in the laws.
PAIRS = [
    (seed, *SHAPES[seed % len(SHAPES)], (1.0, 0.4)[seed // len(SHAPES) % 2], seed % 3 == 2) for seed in range(47)
] + [(99, 5, 3, 0.4, False)]
LONG = [pair for pair in PAIRS if pair[2] == 3]  # some wrong rules pass where drafts are short


def name(pair) -> str:
    seed, vocab, length, alpha, cut = pair
    return f"{seed}-V{vocab}-L{length}-{alpha}{'-cut' if cut else ''}"


@pytest.fixture(params=PAIRS, ids=name)
def laws(request) -> Laws:
    return Laws.random(*request.param)


@pytest.mark.parametrize("verifier", [RejectionVerifier(), BlockVerifier()], ids=["rejection", "block"])
def test_a_sampled_draft_leaves_the_targets_law(laws, verifier):
    outcome = integrate(verifier, laws)
    assert sum(outcome.law.values()) == pytest.approx(1, abs=EXACT)
    assert outcome.distance(laws.joint()) < EXACT


@pytest.mark.parametrize("verifier", [RejectionVerifier(), BlockVerifier()], ids=["rejection", "block"])
def test_a_chosen_draft_leaves_the_targets_law(laws, verifier):
    """Without probabilities the draft's law is one-hot."""
    assert integrate(verifier, laws, greedy_draft=True, claims_probs=False).distance(laws.joint()) < EXACT


def test_block_never_accepts_less_than_rejection(laws):
    block, rejection = (integrate(v, laws).accepted for v in (BlockVerifier(), RejectionVerifier()))
    assert block >= rejection - EXACT


def test_block_really_gains():
    gains = [integrate(BlockVerifier(), Laws.random(*pair)).accepted for pair in LONG]
    plain = [integrate(RejectionVerifier(), Laws.random(*pair)).accepted for pair in LONG]
    assert sum(b > r + 1e-3 for b, r in zip(gains, plain, strict=True)) > len(LONG) / 2


def test_acceptance_is_one_minus_the_distance_of_the_laws(laws):
    """Rejection at the first position: sum of min(p, q)."""
    first = Laws(laws.vocab, 1, {c: v for c, v in laws.p.items() if len(c) < 2}, laws.q)
    expected = sum(min(a, b) for a, b in zip(laws.p[()], laws.q[()], strict=True))
    assert integrate(RejectionVerifier(), first).accepted == pytest.approx(expected, abs=EXACT)


def test_the_papers_worked_example():
    """Context-free p = (1/3, 2/3), q = (2/3, 1/3), two tokens: 10/9 by token, 11/9 by block (Sun et al. 2024)."""
    some = Laws.random(0, 2, 2, 1.0)
    laws = Laws(2, 2, {c: numpy.array([1, 2]) / 3 for c in some.p}, {c: numpy.array([2, 1]) / 3 for c in some.q})
    assert integrate(RejectionVerifier(), laws).accepted == pytest.approx(10 / 9, abs=EXACT)
    assert integrate(BlockVerifier(), laws).accepted == pytest.approx(11 / 9, abs=EXACT)


@pytest.mark.parametrize("verifier", [RejectionVerifier(), BlockVerifier()], ids=["rejection", "block"])
def test_a_perfect_draft_is_always_accepted(laws, verifier):
    """p = q: the residual is zero everywhere, and h is 0 / 0."""
    same = Laws(laws.vocab, laws.length, laws.p, laws.p)
    outcome = integrate(verifier, same)
    assert outcome.accepted == pytest.approx(laws.length, abs=EXACT)
    assert outcome.distance(laws.joint()) < EXACT


# --- naive: any draft, chain or tree ---------------------------------------------------------------------------


def tree(laws: Laws, seed: int) -> tuple[Draft, list[Context]]:
    """A random tree of up to five nodes, siblings with different tokens, not deeper than the laws reach."""
    generator = torch.Generator().manual_seed(seed)
    parents, texts = [], []
    for _ in range(5):
        parent = int(torch.randint(-1, len(parents), (), generator=generator))
        text = texts[parent] if parent >= 0 else ()
        free = [v for v in range(laws.vocab) if (*text, v) not in texts]
        if len(text) < laws.length and free:
            parents.append(parent)
            texts.append((*text, free[int(torch.randint(len(free), (), generator=generator))]))
    return Draft(torch.tensor([[text[-1] for text in texts]]), [len(texts)], [parents]), [(), *texts]


def test_naive_leaves_the_targets_law_for_chains_and_trees(laws):
    chain = laws_argmax(laws)
    texts = [chain[:i] for i in range(laws.length + 1)]
    outcome = integrate_draws(NaiveVerifier(), Draft(torch.tensor([chain]), [laws.length]), laws, texts)
    assert outcome.distance(laws.joint()) < EXACT
    draft, texts = tree(laws, seed=laws.vocab)
    outcome = integrate_draws(NaiveVerifier(), draft, laws, texts)
    assert outcome.distance(laws.joint()) < EXACT
    assert outcome.accepted > 0


class OneDrawPerPath(NaiveVerifier):
    """Wrong: each node draws for itself, and siblings get several chances (the flaw of algorithms.md 6.1)."""

    def verify_sampled(self, draft: Draft, probs_BTV: torch.Tensor, noise: Noise):
        verdict = super().verify_sampled(draft, probs_BTV, noise)
        for b, path in enumerate(verdict.paths):
            if not path and draft.num_drafted[b] and noise.draws_BT[b, 1] < 0.5:
                verdict.paths[b], verdict.next_tokens[b] = [0], verdict.next_tokens[b]
        return verdict


def test_a_second_chance_is_caught():
    for pair in LONG:
        laws = Laws.random(*pair)
        draft, texts = tree(laws, seed=1)
        assert integrate_draws(OneDrawPerPath(), draft, laws, texts).distance(laws.joint()) > 1e-3


# --- wrong rules, each of which has been published or is easily written ------------------------------------------


class PlainResidual(BlockVerifier):
    """Wrong: the residual of token verification, p - q, after block acceptance."""

    def acceptance(self, draft, probs_BTV):
        right = super().acceptance(draft, probs_BTV)
        return AcceptanceProbs(right.accept_BG, torch.ones_like(right.weight_BT))


class RunningWeight(BlockVerifier):
    """Wrong: accepts with w where h belongs."""

    def acceptance(self, draft, probs_BTV):
        weight_BT = running_weight(ratios(draft, probs_BTV))
        return AcceptanceProbs(weight_BT[:, 1:], weight_BT)


class WeightPerFactor(BlockVerifier):
    """Wrong: the minimum is taken of each ratio, not of the running product."""

    def acceptance(self, draft, probs_BTV):
        clipped = ratios(draft, probs_BTV).clamp(max=1)
        twin = Draft(draft.tokens_BG, draft.num_drafted, probs_BGV=draft.probs_BGV)
        right = super().acceptance(twin, probs_BTV)
        return AcceptanceProbs(right.accept_BG, running_weight(clipped))


class CorrectionFromTarget(RejectionVerifier):
    """Wrong: the recovered token is drawn from p instead of the residual."""

    def next_probs(self, draft, probs_BTV, acceptance, tau_B):
        return probs_BTV[torch.arange(len(tau_B)), tau_B]


class BlockCorrectionFromTarget(BlockVerifier):
    """Wrong in the same way."""

    next_probs = CorrectionFromTarget.next_probs


class FirstFailureStops(BlockVerifier):
    """Wrong: block's chances with rejection's way of counting."""

    num_accepted = RejectionVerifier.num_accepted


WRONG = [
    PlainResidual,
    RunningWeight,
    WeightPerFactor,
    CorrectionFromTarget,
    BlockCorrectionFromTarget,
    FirstFailureStops,
]


@pytest.mark.parametrize(
    "rule", short_only(WRONG, PlainResidual, RunningWeight, CorrectionFromTarget, BlockCorrectionFromTarget)
)
def test_wrong_rules_are_rejected(rule):
    distances = [integrate(rule(), laws).distance(laws.joint()) for laws in (Laws.random(*pair) for pair in LONG)]
    assert max(distances) > 5e-3
    # Some wrong rules are right for some laws: hence many pairs.
    assert sum(distance > 1e6 * EXACT for distance in distances) >= len(distances) / 2


@pytest.mark.parametrize("verifier", [RejectionVerifier(), BlockVerifier()], ids=["rejection", "block"])
def test_an_argmax_draft_that_claims_to_be_sampled_is_rejected(verifier):
    """The ratio test is for tokens drawn from q; for chosen ones it is biased."""
    for laws in (Laws.random(*pair) for pair in LONG):
        assert integrate(verifier, laws, greedy_draft=True, claims_probs=True).distance(laws.joint()) > 1e-2


def test_typical_acceptance_is_lossy():
    """It is marked so for a reason: an accepted token has the draft's law, not the target's."""
    laws = Laws.random(5, 3, 1, 1.0)
    draft, texts = Draft(torch.tensor([laws_argmax(laws)]), [1]), [(), laws_argmax(laws)]
    assert integrate_draws(TypicalVerifier(epsilon=0.09, delta=0.3), draft, laws, texts).distance(laws.joint()) > 0.1


@pytest.mark.slow
def test_many_rounds_of_the_sampler_have_the_enumerated_law():
    """The production sampler once more, with its own random stream: chi-square at level 1e-4."""
    laws = Laws.random(3, 3, 1, 0.4)
    drafts = [tokens for tokens, _ in laws.drafts()]
    size = 60_000
    draft_noise = uniforms([(1, i) for i in range(size)], [[0]] * size, DRAFT, [0])[:, 0]
    shares = torch.tensor([mass for _, mass in laws.drafts()]).double().cumsum(0)
    chosen = [drafts[i] for i in torch.searchsorted(shares, draft_noise).clamp(max=len(drafts) - 1).tolist()]
    draft, probs = chain_draft(laws, chosen, with_probs=True)
    keys = [(1, i) for i in range(size)]
    numbers = Noise(uniforms(keys, [[0, 1]] * size, DRAW, [0, 0]), uniforms(keys, [[0]] * size, TEST, [0]))
    for verifier in (RejectionVerifier(), BlockVerifier()):
        verdict = verifier.verify_sampled(draft, probs, numbers)
        counts: dict[Context, int] = {}
        for tokens, path, token in zip(chosen, verdict.paths, verdict.next_tokens, strict=True):
            text = (*tokens[: len(path)], token)
            counts[text[:1]] = counts.get(text[:1], 0) + 1
        observed = [counts.get((v,), 0) for v in range(3)]
        assert chisquare(observed, laws.p[()] * size).pvalue > 1e-4
