"""Whether drafted and emitted tokens follow the distributions that they should.

Counts over many rows are compared with their expectations. The random numbers are fixed, so a plug-in always gets the
same result; the limit is so wide that a correct plug-in does not exceed it by chance. Shape letters: R rows, G drafted
tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from specdec.conformance.cases import abbreviated
from specdec.conformance.checked_drafter import draft_at_once, shape_problem
from specdec.conformance.decoding import drafter_context
from specdec.conformance.models import device, small_pair
from specdec.conformance.promises import Broken, construct, reporting_errors
from specdec.core.clock import Clock
from specdec.core.round import Draft
from specdec.core.sampling import Noise
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence
from specdec.core.siblings import CHOSEN
from specdec.drafters.base import Drafter
from specdec.drafters.context import DrafterContext
from specdec.registry import create
from specdec.verifiers.base import Verifier

LIMIT = 6.0  # standard deviations
LEAST_EXPECTED = 5.0  # occurrences: a rarer token's count is too far from normal for this limit
NUM_DRAWN = 400  # rows whose drafts are counted
NUM_DECIDED = 20_000  # rows whose verdicts are counted


@dataclass(frozen=True, slots=True)
class DrawnCase:
    """One prompt shared by many rows, each with its own random numbers."""

    prompt: tuple[int, ...]
    gamma: int
    temperature: float
    seed: int = 0

    def __str__(self) -> str:
        return (
            f"{NUM_DRAWN} rows that hold {abbreviated(self.prompt)}, gamma {self.gamma}, "
            f"temperature {self.temperature}, model seed {self.seed}"
        )


DRAWN_CASES = (DrawnCase((3, 1, 4, 1, 5), 4, 1.0), DrawnCase((7,), 3, 2.5, 1))


@reporting_errors
def check_drawn(case: DrawnCase, make: Callable[[DrafterContext], Drafter]) -> list[Broken]:
    """Compare, step by step, how often each token is drafted with the probabilities that come with the drafts.

    Raises:
        RefusedError: the drafter's constructor refuses the models.
    """
    target, draft_model = small_pair(case.seed, "float64")
    align = partial(create, "alignment", "eqspec")
    rows = [
        Sequence(i, list(case.prompt), case.gamma + 1, sampling=SamplingParams(case.temperature, seed=i))
        for i in range(NUM_DRAWN)
    ]
    drafter = construct(make, drafter_context(target, draft_model, Clock(), align, [[]] * NUM_DRAWN))
    gamma = min(case.gamma, drafter.max_length or case.gamma)
    draft = draft_at_once(drafter, rows, [gamma] * len(rows), target)
    if problem := shape_problem(draft, [gamma] * len(rows)):
        return [Broken("shape", problem)]
    if draft.probs_BGV is None:
        return []  # tokens are chosen, not drawn
    counts_R = torch.tensor(draft.num_candidates, device=draft.tokens_BG.device)
    for g in range(draft.tokens_BG.shape[1]):
        drawn = counts_R > g
        if detail := _unlikely(draft.tokens_BG[drawn, g], draft.probs_BGV[drawn, g].double()):
            return [Broken("distribution", f"drafted token {g + 1} of {len(rows)} rows: {detail}")]
    return []


def _unlikely(tokens_R: Tensor, probs_RV: Tensor) -> str:
    """Why each row's token cannot have been drawn from the row's probabilities; empty if it can."""
    if not len(tokens_R):
        return ""
    own_R = probs_RV.gather(1, tokens_R[:, None])[:, 0]
    if bool((own_R <= 0).any()):
        return f"token {int(tokens_R[own_R.argmin()])} is drawn, with probability 0"
    count_V = torch.bincount(tokens_R, minlength=probs_RV.shape[1]).double()
    expected_V = probs_RV.sum(0)
    token = _far_off(count_V, expected_V, (probs_RV * (1 - probs_RV)).sum(0))
    return "" if token is None else f"token {token} {_compared(count_V[token], expected_V[token])}"


def _far_off(count_N: Tensor, expected_N: Tensor, variance_N: Tensor) -> int | None:
    """The count that lies farthest from its expectation, if that is too far."""
    deviation_N = (count_N - expected_N).abs() / variance_N.clamp(min=LEAST_EXPECTED).sqrt()
    worst = int(deviation_N.argmax())
    return worst if float(deviation_N[worst]) > LIMIT else None


def _compared(count: Tensor, expected: Tensor) -> str:
    return f"occurs {float(count):.0f} times where {float(expected):.0f} are expected"


@dataclass(frozen=True, slots=True)
class EmittedCase:
    """A round of many rows with the same random distributions, each with its own draft and random numbers."""

    seed: int
    with_probs: bool = False
    tree: bool = False
    vocab: int = 4

    def __str__(self) -> str:
        shape = "two siblings and a child of the first" if self.tree else "two tokens"
        kind = "with the probabilities they were drawn from" if self.with_probs else "without probabilities"
        return f"{NUM_DECIDED} rows, {shape} drafted {kind}, vocabulary {self.vocab}, seed {self.seed}"


EMITTED_CASES = tuple(
    EmittedCase(seed, with_probs, tree)
    for with_probs, tree in ((True, False), (False, False), (False, True))
    for seed in range(2)
)


@reporting_errors
def check_emitted(case: EmittedCase, verifier: Verifier) -> list[Broken]:
    """Compare the first two emitted tokens with the target's joint distribution of them.

    Where a round emits only one token, the target's distribution of the second is counted instead.
    """
    if not verifier.samples or (case.tree and CHOSEN not in verifier.judges):
        return []  # the verifier does not decide such rounds
    generator = torch.Generator().manual_seed(case.seed)
    target, drafting = (_Distributions.random(case.vocab, generator) for _ in range(2))
    draft = _drafts(case, drafting, generator)
    first_R, second_R, *_ = draft.tokens_BG.unbind(1)
    columns = [target.first_V.expand(NUM_DECIDED, -1), target.second_VV[first_R]]
    if case.tree:
        columns += [target.second_VV[second_R], target.third_VVV[first_R, draft.tokens_BG[:, 2]]]
    else:
        columns += [target.third_VVV[first_R, second_R]]
    probs_BTV = torch.stack(columns, dim=1)
    draws_BT, tests_BT = torch.rand(2, *probs_BTV.shape[:2], generator=generator, dtype=torch.float64)
    there = replace(draft, tokens_BG=draft.tokens_BG.to(device()))
    if draft.probs_BGV is not None:
        there.probs_BGV = draft.probs_BGV.to(device())
    noise = Noise(draws_BT.to(device()), tests_BT[:, 1:].to(device()))
    verdict = verifier.verify_sampled(there, probs_BTV.to(device()), noise)
    joint_VV = torch.zeros(case.vocab, case.vocab, dtype=torch.float64)
    for tokens, path, following in zip(draft.tokens_BG.tolist(), verdict.paths, verdict.next_tokens, strict=True):
        emitted = [*(tokens[node] for node in path), following]
        if len(emitted) > 1:
            joint_VV[emitted[0], emitted[1]] += 1
        else:
            joint_VV[emitted[0]] += target.second_VV[emitted[0]]
    share_VV = target.first_V[:, None] * target.second_VV
    expected_N, variance_N = NUM_DECIDED * share_VV.flatten(), NUM_DECIDED * (share_VV * (1 - share_VV)).flatten()
    worst = _far_off(joint_VV.flatten(), expected_N, variance_N)
    if worst is None:
        return []
    pair = divmod(worst, case.vocab)
    detail = f"the pair of tokens {list(pair)} {_compared(joint_VV[pair], expected_N[worst])}"
    return [Broken("distribution", detail)]


@dataclass(frozen=True, slots=True)
class _Distributions:
    """Distributions of a first token, of the second after each first, and of the third after each pair."""

    first_V: Tensor
    second_VV: Tensor
    third_VVV: Tensor

    @staticmethod
    def random(vocab: int, generator: torch.Generator) -> _Distributions:
        def draw(*contexts: int) -> Tensor:
            weights = -torch.rand(*contexts, vocab, generator=generator, dtype=torch.float64).log()
            return weights / weights.sum(-1, keepdim=True)

        return _Distributions(draw(), draw(vocab), draw(vocab, vocab))


def _drafts(case: EmittedCase, drafting: _Distributions, generator: torch.Generator) -> Draft:
    """Every row's own draft: two tokens, or a first token, its sibling and a child of the first."""
    first_R = torch.multinomial(drafting.first_V, NUM_DECIDED, replacement=True, generator=generator)
    next_RV = drafting.second_VV[first_R]
    next_R = torch.multinomial(next_RV, 1, generator=generator)[:, 0]
    if case.tree:
        other_R = (first_R + torch.randint(1, case.vocab, (NUM_DECIDED,), generator=generator)) % case.vocab
        tokens_RG = torch.stack([first_R, other_R, next_R], dim=1)
        return Draft(tokens_RG, [3] * NUM_DECIDED, [[-1, -1, 0]] * NUM_DECIDED)
    probs_RGV = torch.stack([drafting.first_V.expand(NUM_DECIDED, -1), next_RV], dim=1)
    tokens_RG = torch.stack([first_R, next_R], dim=1)
    return Draft(tokens_RG, [2] * NUM_DECIDED, probs_BGV=probs_RGV if case.with_probs else None)
