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
from specdec.conformance.sampled_drafts import Distributions, sampled_drafts
from specdec.core.clock import Clock
from specdec.core.round import Draft, Verdict
from specdec.core.sampling import Noise
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence
from specdec.core.siblings import BEAM, CHAIN, CHOSEN, IID, WITHOUT_REPLACEMENT
from specdec.drafters.base import Drafter
from specdec.drafters.context import DrafterContext
from specdec.registry import create
from specdec.verifiers.base import Verifier

LIMIT = 6.0  # standard deviations
LEAST_EXPECTED = 5.0  # occurrences: a rarer token's count is too far from normal for this limit
SAME_CHANCE = 1e-6  # predictions that differ by rounding alone
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
    if detail := peeking(draft):
        return [Broken("chances", detail)]
    if draft.probs_BGV is None:
        return []  # tokens are chosen, not drawn
    for place, drawn in _drawn_tokens(draft).items():
        rows_R, columns_R, tokens_R, before = zip(*drawn, strict=True)
        probs_RV = draft.probs_BGV[list(rows_R), list(columns_R)].double()
        for r, siblings in enumerate(before):
            probs_RV[r, siblings] = 0
        probs_RV = probs_RV / probs_RV.sum(-1, keepdim=True)
        if detail := _unlikely(torch.tensor(tokens_R, device=probs_RV.device), probs_RV):
            depth, rank = place
            where = f"drafted token {depth}" if draft.parents is None else f"depth {depth}, sibling {rank}"
            return [Broken("distribution", f"{where} of {len(rows)} rows: {detail}")]
    return []


def peeking(draft: Draft) -> str:
    """Which prediction of acceptance knows the token that it is about; empty if none does.

    All rows hold the same tokens and their draws differ, so a prediction may differ only after other drafted tokens.
    """
    if draft.chances is None:
        return ""
    known: dict[tuple[int, ...], float] = {}
    for b, count in enumerate(draft.num_candidates):
        for node in range(count):
            path = draft.path(b, node)
            before = tuple(draft.ids[b][other] for other in path[:-1])
            chance = draft.chances[b][path[-2] + 1 if len(path) > 1 else 0]
            other = known.setdefault(before, chance)
            if not 0 <= chance <= 1:
                return f"{chance} after {list(before)}: it is no probability"
            if abs(other - chance) > SAME_CHANCE:
                return f"{other:.4f} and {chance:.4f} after the same drafted tokens {list(before)}"
    return ""


def _drawn_tokens(draft: Draft) -> dict[tuple[int, int], list[tuple[int, int, int, list[int]]]]:
    """What was drawn, by depth and number of the sibling: row, column of the parent, token, tokens it cannot be.

    Independent draws may repeat a sibling; otherwise each node is drawn without its siblings before it.
    """
    found: dict[tuple[int, int], list[tuple[int, int, int, list[int]]]] = {}
    for b, count in enumerate(draft.num_candidates):
        siblings: dict[int, list[int]] = {}
        for node in draft.draws[b] if draft.draws else range(count):
            path = draft.path(b, node)
            column = path[-2] + 1 if len(path) > 1 else 0
            before = siblings.setdefault(column, [])
            token = draft.ids[b][node]
            excluded = [] if draft.draws else list(before)
            found.setdefault((len(path), len(before) + 1), []).append((b, column, token, excluded))
            before.append(token)
    return found


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
    siblings: str
    with_probs: bool = True
    vocab: int = 4

    def __str__(self) -> str:
        shape = "two tokens" if self.siblings == CHAIN else f"two siblings ({self.siblings}) and children"
        kind = "with the probabilities they were drawn from" if self.with_probs else "without probabilities"
        return f"{NUM_DECIDED} rows, {shape} drafted {kind}, vocabulary {self.vocab}, seed {self.seed}"


EMITTED_CASES = tuple(
    EmittedCase(seed, siblings, with_probs)
    for siblings, with_probs in (
        *((CHAIN, True), (CHAIN, False), (CHOSEN, False)),
        *((siblings, True) for siblings in (IID, WITHOUT_REPLACEMENT, BEAM)),
    )
    for seed in range(2)
)


@reporting_errors
def check_emitted(case: EmittedCase, verifier: Verifier) -> list[Broken]:
    """Compare the first two emitted tokens with the target's joint distribution of them.

    Where a round emits only one token, the target's distribution of the second is counted instead. Only kinds of
    siblings that the verifier judges are tried.
    """
    if not verifier.samples or case.siblings not in verifier.judges:
        return []
    generator = torch.Generator().manual_seed(case.seed)
    target, drafting = (Distributions.random(case.vocab, generator) for _ in range(2))
    drafts = sampled_drafts(case.siblings, drafting, NUM_DECIDED, generator, case.with_probs)
    probs_BTV, draft = target.after(drafts.texts), drafts.draft
    draws_BT = torch.rand(probs_BTV.shape[:2], generator=generator, dtype=torch.float64)
    num_tests = max([probs_BTV.shape[1] - 1, *map(len, draft.draws or ())])
    tests_BG = torch.rand(NUM_DECIDED, num_tests, generator=generator, dtype=torch.float64)
    there = replace(draft, tokens_BG=draft.tokens_BG.to(device()))
    if draft.probs_BGV is not None:
        there.probs_BGV = draft.probs_BGV.to(device())
    verdict = verifier.verify_sampled(
        there, probs_BTV.to(device()), Noise(draws_BT.to(device()), tests_BG.to(device()))
    )
    return _compare_joint(draft, verdict, target)


def _compare_joint(draft: Draft, verdict: Verdict, target: Distributions) -> list[Broken]:
    vocab = len(target.first_V)
    joint_VV = torch.zeros(vocab, vocab, dtype=torch.float64)
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
    pair = divmod(worst, vocab)
    detail = f"the pair of tokens {list(pair)} {_compared(joint_VV[pair], expected_N[worst])}"
    return [Broken("distribution", detail)]
