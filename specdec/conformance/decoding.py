"""Complete decoding runs of small models, whose output, acceptance and end are known in advance."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import TypeVar

import torch

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.budgets.base import Budget
from specdec.conformance.calls import MakeAlignment
from specdec.conformance.cases import VOCAB, DecodingCase
from specdec.conformance.costs import assumed_costs
from specdec.conformance.models import device, greedy, sampled, small_pair, tokenizers
from specdec.conformance.promises import Broken, construct, reporting_errors
from specdec.core.clock import Clock
from specdec.core.round import Draft
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence, SequencePool
from specdec.draft_lengths.base import DraftLength
from specdec.drafters.base import Drafter
from specdec.drafters.context import DrafterContext
from specdec.drafters.model import ModelDrafter
from specdec.engine.loop import RoundLoop
from specdec.models.causal_lm import CausalLM
from specdec.registry import create
from specdec.schedulers.base import Scheduler
from specdec.verifiers.base import Verifier

Policy = TypeVar("Policy", Budget, DraftLength)
Truth = ListLike[ListLike[int]]  # every row's output, by its index
Notes = list[Broken]


@dataclass(slots=True)
class Parts:
    """The parts of an engine. The one under test is given; the others are built in."""

    align: MakeAlignment = lambda model, clock: create("alignment", "eqspec", model, clock)
    drafter: Callable[[DrafterContext], Drafter] | None = None  # None: as the case says
    verifier: Callable[[], Verifier] = lambda: create("verifier", "greedy")
    scheduler: Callable[[str, int, int], Scheduler] = lambda name, *sizes: create("scheduler", name, *sizes)
    budget: Callable[[], Budget] | None = None
    draft_length: Callable[[], DraftLength] | None = None  # None: as the case says
    # A wrapper appends what it finds broken to the notes of its run.
    wrap_drafter: Callable[[Drafter, Callable[[], Drafter], CausalLM, Notes], Drafter] = lambda drafter, *_: drafter
    wrap_scheduler: Callable[[Scheduler, int, Notes], Scheduler] = lambda scheduler, *_: scheduler


class PatternDrafter(Drafter):
    """Drafts the true output for the first ``pattern(row, round)`` tokens, and wrong tokens after them."""

    def __init__(self, truth: Truth, pattern: Callable[[int, int], int]) -> None:
        self.truth, self.pattern = truth, pattern
        self.rounds: dict[int, int] = {}

    def admit(self, rows: list[Sequence]) -> None:
        self.rounds.update((row.index, 0) for row in rows)

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        tokens_BG = torch.zeros(len(rows), max(gammas), dtype=torch.long)
        for b, (row, gamma) in enumerate(zip(rows, gammas, strict=True)):
            right = self.pattern(row.index, self.rounds[row.index])
            for g in range(gamma):
                true = self.truth[row.index][len(row.output_ids) + g]
                tokens_BG[b, g] = true if g < right else (true + 1) % VOCAB
        return Draft(tokens_BG.to(device()), list(gammas))

    def commit(self, rows: list[Sequence]) -> None:
        for row in rows:
            self.rounds[row.index] += 1

    def release(self, rows: list[Sequence]) -> None:
        for row in rows:
            del self.rounds[row.index]


class CaseLength(DraftLength):
    """The case's draft lengths: they differ by row and round, and may be 0."""

    def __init__(self, case: DecodingCase) -> None:
        self.case = case

    def choose(self, rows: list[Sequence]) -> list[int]:
        return [self.case.gamma(row.index, len(row.accepted_lengths)) for row in rows]


@reporting_errors
def check_run(case: DecodingCase, parts: Parts) -> list[Broken]:
    """Decode, and compare every row with its known output.

    Raises:
        RefusedError: the plug-in's constructor refuses the case.
    """
    truth = _truth(case)
    notes: Notes = []
    rows = _rows(case, _stop_ids(case, truth))
    pool = SequencePool(rows)
    engine = construct(_engine, case, parts, truth, notes)
    try:
        for _ in range(sum(case.budgets) + 1):
            if pool.done:
                break
            engine.step(pool)
    except Exception:
        if not notes:
            raise
        return notes  # the exception follows from these
    return notes + [broken for row in rows for broken in _compare(row, case, parts, truth[row.index])]


def _truth(case: DecodingCase) -> Truth:
    if not case.temperature:
        return [greedy(case.seed, case.dtype, prompt, case.num_known) for prompt in case.prompts]
    return [
        sampled(case.seed, case.dtype, prompt, case.num_known, index, case.temperature)
        for index, prompt in enumerate(case.prompts)
    ]


def _rows(case: DecodingCase, stop_ids: frozenset[int]) -> list[Sequence]:
    rows = []
    for i, (prompt, budget) in enumerate(zip(case.prompts, case.budgets, strict=True)):
        sampling = SamplingParams(case.temperature, seed=i) if case.temperature else None
        rows.append(Sequence(i, list(prompt), budget, stop_ids, sampling))
    return rows


def _engine(case: DecodingCase, parts: Parts, truth: Truth, notes: Notes) -> RoundLoop:
    target, draft = small_pair(case.seed, case.dtype)
    clock = Clock()
    context = drafter_context(target, target if case.draft_is_target else draft, clock, parts.align, truth)

    def make() -> Drafter:
        if parts.drafter is not None:
            return parts.drafter(context)
        return PatternDrafter(truth, case.num_right) if case.pattern else ModelDrafter(context)

    return RoundLoop(
        parts.align(target, clock),
        parts.wrap_drafter(make(), make, target, notes),
        # Of the exact verifiers only naive emits the tokens of plain sampling, whatever is drafted.
        create("verifier", "naive") if case.temperature else parts.verifier(),
        parts.wrap_scheduler(parts.scheduler(case.scheduler, case.batch, case.window), case.batch, notes),
        _measured(parts.draft_length, case) or CaseLength(case),
        clock,
        budget=_measured(parts.budget, case),
    )


def _measured(make: Callable[[], Policy] | None, case: DecodingCase) -> Policy | None:
    """The policy under test, after its preparation: it finds that drafting pays."""
    if make is None:
        return None
    policy = make()
    with assumed_costs() as profiler:
        policy.prepare(profiler, case.batch)
    return policy


def drafter_context(
    target: CausalLM, draft: CausalLM, clock: Clock, align: MakeAlignment, truth: Truth
) -> DrafterContext:
    """Everything that a drafter may ask for."""
    known = lambda row: list(truth[row.index])  # noqa: E731
    return DrafterContext(target, draft, lambda model: align(model, clock), clock, *tokenizers(), known)


def _stop_ids(case: DecodingCase, truth: Truth) -> frozenset[int]:
    stops = {0, *(prompt[0] for prompt in case.prompts)} if case.stops_in_prompts else set()
    if case.stop_every:
        stops |= {output[case.stop_every - 1] for output in truth}
    return frozenset(stops)


def _compare(row: Sequence, case: DecodingCase, parts: Parts, truth: ListLike[int]) -> list[Broken]:
    stops = [i for i, token in enumerate(truth[: row.max_new_tokens]) if token in row.stop_ids]
    expected = list(truth[: stops[0] + 1] if stops else truth[: row.max_new_tokens])
    reason = "stop" if stops else "length"
    name = f"row {row.index}"
    if row.output_ids != expected:
        if row.output_ids == expected[: len(row.output_ids)]:
            return [Broken("progress", f"{name} ends after {len(row.output_ids)} of its {len(expected)} tokens")]
        at = next((i for i, (a, b) in enumerate(zip(row.output_ids, expected, strict=False)) if a != b), len(expected))
        found = row.output_ids[at] if at < len(row.output_ids) else "nothing"
        return [Broken("emission", f"{name}, output {at}: expected {[*expected, 'the end'][at]}, found {found}")]
    if row.stop_reason != reason:
        return [Broken("progress", f"{name} ends for the reason {row.stop_reason!r} instead of {reason!r}")]
    as_asked = parts.drafter is None and parts.budget is None and parts.draft_length is None
    if as_asked and (case.pattern or case.draft_is_target):
        wanted, found_lengths = _accepted(row, case, len(expected)), row.accepted_lengths
        if found_lengths != wanted:
            return [Broken("acceptance", f"{name}: expected {wanted} accepted per round, found {found_lengths}")]
    return []


def _accepted(row: Sequence, case: DecodingCase, num_emitted: int) -> list[int]:
    """How many of a row's emitted tokens each round must have accepted."""
    wanted: list[int] = []
    done = 0
    while done < num_emitted:
        gamma = min(case.gamma(row.index, len(wanted)), row.max_new_tokens - done - 1)
        right = gamma if case.draft_is_target else min(case.num_right(row.index, len(wanted)), gamma)
        wanted.append(min(right, num_emitted - done))
        done += right + 1
    return wanted
