"""Whether a row's distribution depends on its neighbours' drafts, by exact enumeration of one round of few rows.

The policy decides for every combination of the rows' drafts; each decision gets a copy of the same policy, which has
measured the same costs and seen the same rounds before. Averaged over all drafts, every row must emit as the target
does. A policy that looks at the tokens about which it decides does not, although its acceptance looks normal.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from specdec.budgets.base import Budget
from specdec.conformance.costs import assumed_costs
from specdec.conformance.promises import Broken, construct, reporting_errors
from specdec.conformance.row_laws import (
    CHAIN,
    LEVELS,
    PATHS,
    VOCAB,
    Array,
    RowDraft,
    RowLaws,
    by_token,
    draft_of,
    of_chains,
)
from specdec.conformance.row_laws import row_drafts as drafts_of_row
from specdec.core.clock import STAGES
from specdec.core.round import Draft, Round
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence
from specdec.draft_lengths.base import DraftLength
from specdec.verifiers.block import BlockVerifier

EXACT = 1e-9  # total variation that rounding explains
HISTORY = 4  # earlier rounds
REJECTION, BLOCK = "rejection", "block"
Policy = TypeVar("Policy", Budget, DraftLength)
Decide = Callable[[list[Sequence], Draft], list[int] | None]


@dataclass(frozen=True, slots=True)
class LawCase:
    """Random laws of a few rows, and what rounds cost."""

    seed: int
    num_rows: int = 2
    kind: str = CHAIN
    rule: str = REJECTION
    chosen: bool = False  # drafts are the most probable tokens, not drawn
    told: bool = False  # the drafter predicts acceptance itself, by the tokens before

    @property
    def laws(self) -> list[RowLaws]:
        """Each row's own."""
        rng = np.random.default_rng(self.seed)
        return [RowLaws.random(rng) for _ in range(self.num_rows)]

    @property
    def seconds(self) -> tuple[float, ...]:
        """Of rounds that verify 0, 1, 2 drafted tokens per row: convex, or the first token is the dearer one."""
        rng = np.random.default_rng(1000 + self.seed)
        convex = self.seed % 2
        first = rng.uniform(0.1, 0.4) if convex else rng.uniform(0.7, 1.2)
        second = rng.uniform(first, 0.8) if convex else rng.uniform(0.02, 0.3)
        return 1.0, 1 + first, 1 + first + second

    def __str__(self) -> str:
        how = "chosen" if self.chosen else f"{self.kind} drawn, judged by {self.rule}"
        how += ", with the drafter's own predictions" if self.told else ""
        rows = "; ".join(f"row {b} has {laws}" for b, laws in enumerate(self.laws))
        costs = ", ".join(f"{value:.2f}" for value in self.seconds)
        return (
            f"{self.num_rows} rows, two tokens, two levels, {how}, seconds by level {costs}, seed {self.seed}: {rows}"
        )


def law_cases(scale: float) -> list[LawCase]:
    """Chains of one and two rows under both rules, trees, and chosen drafts."""
    seeds = range(max(2, round(16 * scale)))
    chains = [LawCase(seed, rows, CHAIN, rule) for rows in (1, 2) for rule in (REJECTION, BLOCK) for seed in seeds]
    trees = [LawCase(seed, 1 + seed % 2, PATHS) for seed in seeds[: len(seeds) // 2]]
    told = [LawCase(seed, told=True) for seed in seeds[: len(seeds) // 2]]
    return [*chains, *trees, *told, LawCase(0, chosen=True), LawCase(1, chosen=True)]


@reporting_errors
def check_budget(case: LawCase, make: Callable[[], Budget]) -> list[Broken]:
    """A budget's depths, for every combination of drafts."""
    with assumed_costs(case.seconds) as profiler:
        budget = construct(make)
        budget.prepare(profiler, case.num_rows)
        return _check(case, budget, lambda policy: policy.keep)


@reporting_errors
def check_draft_length(case: LawCase, make: Callable[[], DraftLength]) -> list[Broken]:
    """A draft-length policy's choice, which the drafts are cut to."""
    with assumed_costs(case.seconds) as profiler:
        policy = construct(make)
        policy.prepare(profiler, case.num_rows)

        def choosing(one: DraftLength) -> Decide:
            return lambda rows, draft: one.choose(rows)

        return _check(case, policy, choosing, bounded=False)


def _check(
    case: LawCase, policy: Policy, deciding: Callable[[Policy], Decide], *, bounded: bool = True
) -> list[Broken]:
    laws = case.laws
    options = [_options(case, row) for row in laws]
    joint = list(itertools.product(*(range(len(drafts)) for drafts in options)))
    history = np.random.default_rng(case.seed).integers(len(joint), size=HISTORY)
    for turn, place in enumerate(history):
        _decide(case, policy, deciding, [drafts[i] for drafts, i in zip(options, joint[place], strict=True)], turn)
    tables = [_table(case, row, drafts) for row, drafts in zip(laws, options, strict=True)]
    emitted = [np.zeros_like(row.plain(())) for row in laws]
    for places in joint:
        chosen = [drafts[i] for drafts, i in zip(options, places, strict=True)]
        depths = _decide(case, copy.deepcopy(policy), deciding, chosen, HISTORY)
        if len(depths) != len(laws) or any(depth < 0 or (bounded and depth > LEVELS) for depth in depths):
            return [Broken("depths", f"{depths} for drafts of depths {[LEVELS] * len(laws)}")]
        mass = float(np.prod([draft.weight for draft in chosen]))
        for b, (i, depth) in enumerate(zip(places, depths, strict=True)):
            emitted[b] += mass * tables[b][min(depth, LEVELS)][i]
    far = [0.5 * float(np.abs(found - row.plain(())).sum()) for found, row in zip(emitted, laws, strict=True)]
    worst = int(np.argmax(far))
    if far[worst] < EXACT:
        return []
    return [
        Broken("law", f"row {worst}: its next three tokens are {far[worst]:.3f} (total variation) from the target's")
    ]


def _options(case: LawCase, laws: RowLaws) -> list[RowDraft]:
    if not case.chosen:
        return list(drafts_of_row(laws, case.kind))
    first = int(laws.q[()].argmax())
    return [RowDraft(((first,), (first, int(laws.q[(first,)].argmax()))), 1.0)]


def _table(case: LawCase, laws: RowLaws, drafts: list[RowDraft]) -> list[list[Array]]:
    """By depth and draft, what is emitted."""
    if case.chosen:  # the verifier takes the chosen token's probability for 1
        laws = replace(laws, q={text: np.eye(VOCAB)[q.argmax()] for text, q in laws.q.items()})
    if case.rule == BLOCK:
        return [of_chains(BlockVerifier(), laws, drafts, depth) for depth in range(LEVELS + 1)]
    return [[by_token(laws, draft, depth) for draft in drafts] for depth in range(LEVELS + 1)]


def _decide(
    case: LawCase, policy: Policy, deciding: Callable[[Policy], Decide], chosen: list[RowDraft], turn: int
) -> list[int]:
    """The depths for one combination of drafts; then the policy is told how a round ended."""
    rows = [Sequence(b, [0] * 3, 100, sampling=SamplingParams(1.0, seed=b)) for b in range(case.num_rows)]
    for row in rows:
        row.emit([0] * turn)
    rows_drafts = list(zip(case.laws, chosen, strict=True))
    draft = draft_of(rows_drafts, case.kind, with_probs=not case.chosen, told=case.told)
    depths = deciding(policy)(rows, draft)
    depths = [LEVELS] * case.num_rows if depths is None else list(depths)
    if len(depths) != case.num_rows:
        return depths  # which is reported
    kept = [min(max(depth, 0), LEVELS) for depth in depths]
    accepted = [depth * ((turn + b) % 2) for b, depth in enumerate(kept)]
    emitted = [row.emit([0] * (count + 1)) for row, count in zip(rows, accepted, strict=True)]
    seconds = dict.fromkeys(STAGES, 0.0) | {"verify": float(np.interp(np.mean(kept), range(3), case.seconds))}
    policy.observe(Round(rows, list(kept), accepted, emitted, True, seconds, proposed=[LEVELS] * case.num_rows))
    return depths
