"""The verifier contract, verdict by verdict.

A one-hot target distribution allows one verdict, whatever the random numbers; a soft one shows whether a row's verdict
depends on another row's draft or random numbers. For the distribution of emitted tokens see
:mod:`specdec.conformance.distributions`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from specdec.conformance.models import device
from specdec.conformance.promises import Broken
from specdec.core.round import Draft, Verdict
from specdec.core.sampling import Noise
from specdec.core.siblings import CHOSEN
from specdec.verifiers.base import Verifier

SMALL_VOCAB = 7
SHARP = 60.0  # logits of +-60: all but the argmax have probability zero in every dtype in use
SOFT = 1.0


@dataclass(frozen=True, slots=True)
class VerdictCase:
    """Per row: its nodes as (parent, token), and the target's choice at every column."""

    rows: tuple[tuple[tuple[tuple[int, int], ...], tuple[int, ...]], ...]
    with_probs: bool
    seed: int

    def __str__(self) -> str:
        rows = "; ".join(f"drafted (parent, token) {list(nodes)}, target {list(chosen)}" for nodes, chosen in self.rows)
        return rows + (", with draft probabilities" if self.with_probs else "")


@st.composite
def verdict_cases(draw: Any) -> VerdictCase:
    """Draw ragged chains and trees whose siblings differ, and the target's choices."""
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        nodes: list[tuple[int, int]] = []
        tree = draw(st.booleans())
        for node in range(draw(st.integers(0, 4))):
            parent = draw(st.integers(-1, node - 1)) if tree else node - 1
            taken = {token for other, token in nodes if other == parent}
            nodes.append((parent, draw(st.sampled_from([t for t in range(SMALL_VOCAB) if t not in taken]))))
        chosen = draw(st.lists(st.integers(0, SMALL_VOCAB - 1), min_size=len(nodes) + 1, max_size=len(nodes) + 1))
        for node, (parent, token) in enumerate(nodes):  # half of the nodes hold the target's choice
            if draw(st.booleans()):
                chosen[parent + 1] = token
            assert node >= parent
        rows.append((tuple(nodes), tuple(chosen)))
    return VerdictCase(tuple(rows), draw(st.booleans()), draw(st.integers(0, 3)))


def deep_cases() -> list[VerdictCase]:
    """Nine rows with drafts of eight tokens: the first mismatch is at another depth in each row; one row has none."""
    depth = 8
    rows = []
    for wrong in range(depth + 1):
        tokens = [(wrong + i) % SMALL_VOCAB for i in range(depth)]
        chosen = [*tokens, wrong % SMALL_VOCAB]
        if wrong < depth:
            chosen[wrong] = (tokens[wrong] + 1) % SMALL_VOCAB
        rows.append((tuple((i - 1, token) for i, token in enumerate(tokens)), tuple(chosen)))
    return [VerdictCase(tuple(rows), with_probs, 0) for with_probs in (False, True)]


def check_verdict(case: VerdictCase, verifier: Verifier) -> list[Broken]:
    """All promises that the verdicts of one case break; those found before an exception stay reported."""
    kinds = [False]
    if verifier.samples and (CHOSEN in verifier.judges or not _inputs(case)[0].parents):
        kinds.append(True)
    broken: list[Broken] = []
    for sampled in kinds:
        try:
            broken.extend(_problems(case, verifier, sampled))
        except Exception as error:  # third-party code may raise anything
            method = "verify_sampled" if sampled else "verify"
            broken.append(Broken("calls", f"{method}: {type(error).__name__}: {error}"))
    return broken


def _problems(case: VerdictCase, verifier: Verifier, sampled: bool) -> Iterator[Broken]:
    """The verdict of a batch, the same with other values after ``num_drafted``, and the verdict of every row alone.

    For sampled rows the latter two have soft distributions, where the random numbers decide. Every call gets its own
    tensors, so that a verifier that changes them breaks only that promise.
    """
    verify: Callable[..., Verdict] = verifier.verify_sampled if sampled else verifier.verify
    sharp = partial(_sampled_inputs, case, SHARP) if sampled else partial(_inputs, case)
    soft = partial(_sampled_inputs, case, SOFT) if sampled else sharp
    given, state = sharp(), torch.random.get_rng_state()
    verdict = verify(*given)
    if not all(map(torch.equal, _tensors(*given), _tensors(*sharp()))):
        yield Broken("purity", "an argument was changed in place")
    if not torch.equal(state, torch.random.get_rng_state()):
        yield Broken("purity", "the global random state was used")
    for found in _judge(case, verdict):
        yield replace(found, promise="sampled") if sampled else found
    if not sampled:
        first = replace(case, rows=tuple((nodes, (0,) * len(chosen)) for nodes, chosen in case.rows))
        draft, logits_BTV = _inputs(case)
        for found in _judge(first, verify(draft, torch.zeros_like(logits_BTV))):
            yield replace(found, detail=f"where all logits are equal, torch's argmax is token 0; {found.detail}")
    if sampled:
        verdict = verify(*soft())
    if _differ(verify(*soft(filler=3)), verdict):
        yield Broken("filler", "the verdict changes with the columns after num_drafted")
    kind = ", sampled with the same random numbers" if sampled else ""
    for b in range(len(case.rows)):
        alone = verify(*_row(b, *soft()))
        if _differ(alone, _part(verdict, b)):
            yield Broken("neighbours", f"row {b}{kind}: {_part(verdict, b)} beside others, {alone} alone")


def _tensors(draft: Draft, scores_BTV: Tensor, noise: Noise | None = None) -> list[Tensor]:
    """The tensors in the arguments of a verifier."""
    given = [draft.tokens_BG, draft.probs_BGV, scores_BTV, *((noise.draws_BT, noise.tests_BG) if noise else ())]
    return [tensor for tensor in given if tensor is not None]


def _row(b: int, draft: Draft, scores_BTV: Tensor, noise: Noise | None = None) -> tuple[Any, ...]:
    """One row's arguments as if it were alone."""
    count = draft.num_drafted[b]
    probs_BGV = None if draft.probs_BGV is None else draft.probs_BGV[b : b + 1, :count]
    alone = Draft(draft.tokens_BG[b : b + 1, :count], [count], draft.parents and [draft.parents[b]], probs_BGV)
    scores_BTV = scores_BTV[b : b + 1, : count + 1]
    if noise is None:
        return alone, scores_BTV
    return alone, scores_BTV, Noise(noise.draws_BT[b : b + 1, : count + 1], noise.tests_BG[b : b + 1, :count])


def _part(verdict: Verdict, b: int) -> Verdict:
    return Verdict([verdict.paths[b]], [verdict.next_tokens[b]])


def _differ(one: Verdict, other: Verdict) -> bool:
    return (one.paths, one.next_tokens) != (other.paths, other.next_tokens)


def _judge(case: VerdictCase, verdict: Verdict) -> list[Broken]:
    for b, (nodes, chosen) in enumerate(case.rows):
        path, previous = verdict.paths[b], -1
        for node in path:
            if not 0 <= node < len(nodes) or nodes[node][0] != previous:
                return [Broken("path", f"row {b} accepts nodes {path}, which do not form a path")]
            previous = node
        expected, node = [], -1
        while node is not None:
            expected.append(chosen[node + 1])
            node = next((n for n, (parent, t) in enumerate(nodes) if parent == node and t == expected[-1]), None)  # type: ignore[assignment]
        found = [*(nodes[node][1] for node in path), verdict.next_tokens[b]]
        if found != expected:
            return [Broken("greedy", f"row {b}: expected {expected}, emitted {found}")]
    return []


def _inputs(case: VerdictCase, filler: int = 0) -> tuple[Draft, Tensor]:
    width = max(len(nodes) for nodes, _ in case.rows)
    num_rows = len(case.rows)
    tokens_BG = torch.full((num_rows, width), filler)
    logits_BTV = torch.full((num_rows, width + 1, SMALL_VOCAB), -SHARP)
    logits_BTV[..., filler] = SHARP
    for b, (nodes, chosen) in enumerate(case.rows):
        tokens_BG[b, : len(nodes)] = torch.tensor([token for _, token in nodes])
        logits_BTV[b, : len(chosen)] = -SHARP
        logits_BTV[b, torch.arange(len(chosen)), torch.tensor(chosen)] = SHARP
    parents = [[parent for parent, _ in nodes] for nodes, _ in case.rows]
    chains = all(row == list(range(-1, len(row) - 1)) for row in parents)
    probs_BGV = torch.full((num_rows, width, SMALL_VOCAB), 1 / SMALL_VOCAB).to(device()) if case.with_probs else None
    counts = [len(nodes) for nodes, _ in case.rows]
    return Draft(tokens_BG.to(device()), counts, None if chains else parents, probs_BGV), logits_BTV.to(device())


def _sampled_inputs(case: VerdictCase, sharpness: float, filler: int = 0) -> tuple[Draft, Tensor, Noise]:
    """The same with probabilities instead of logits, and the case's random numbers."""
    draft, logits_BTV = _inputs(case, filler)
    generator = torch.Generator().manual_seed(case.seed)
    draws_BT, tests_BT = torch.rand(2, *logits_BTV.shape[:2], generator=generator, dtype=torch.float64)
    probs_BTV = (logits_BTV.double() * (sharpness / SHARP)).softmax(-1)
    return draft, probs_BTV, Noise(draws_BT.to(device()), tests_BT[:, 1:].to(device()))
