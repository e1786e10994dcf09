"""Whole decoding runs of small models, whose output, acceptance and end are known in advance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.clock import Clock
from specdec.conformance.calls import MakeAlignment
from specdec.conformance.cases import VOCAB, Run
from specdec.conformance.models import greedy, small_pair
from specdec.conformance.promises import Broken
from specdec.draft_lengths.base import DraftLength
from specdec.drafters.base import Draft, Drafter
from specdec.drafters.context import DrafterContext
from specdec.drafters.model import ModelDrafter
from specdec.engine import Engine
from specdec.model import CausalLM
from specdec.registry import create
from specdec.schedulers.base import Scheduler
from specdec.sequence import Sequence, SequencePool
from specdec.verifiers.base import Verifier

NUM_KNOWN = 24  # tokens of the true output that a case may need


@dataclass(slots=True)
class Parts:
    """What an engine is made of; a part that is not under test is the built-in one."""

    align: MakeAlignment = lambda model, clock: create("alignment", "eqspec", model, clock)
    drafter: Callable[[DrafterContext], Drafter] | None = None  # None: as the case says
    verifier: Callable[[], Verifier] = lambda: create("verifier", "greedy")
    scheduler: Callable[[str, int, int], Scheduler] = lambda name, *sizes: create("scheduler", name, *sizes)
    wrap_drafter: Callable[[Drafter, Callable[[], Drafter], CausalLM], Drafter] = lambda drafter, make, target: drafter
    wrap_scheduler: Callable[[Scheduler, Run], Scheduler] = lambda scheduler, run: scheduler
    known_acceptance: bool = True  # whether how much a round accepts is promised
    notes: list[Broken] = field(default_factory=list)  # what the wrappers saw


class ScriptedDrafter(Drafter):
    """Drafts the true output, and a wrong token from the place on that the case's pattern names."""

    def __init__(self, run: Run, truth: list[tuple[int, ...]]) -> None:
        self.run = run
        self.truth = truth
        self.rounds: dict[int, int] = {}

    def admit(self, rows: list[Sequence]) -> None:
        """Start the pattern."""
        self.rounds.update((row.index, 0) for row in rows)

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        """The known tokens, right as far as the pattern says."""
        tokens_BG = torch.zeros(len(rows), max(gammas), dtype=torch.long)
        for b, (row, gamma) in enumerate(zip(rows, gammas, strict=True)):
            right = accepted_by_script(self.run, row.index, self.rounds[row.index])
            for g in range(gamma):
                true = self.truth[row.index][len(row.output_ids) + g]
                tokens_BG[b, g] = true if g < right else (true + 1) % VOCAB
        return Draft(tokens_BG, list(gammas))

    def commit(self, rows: list[Sequence]) -> None:
        """Go on to the next round of the pattern."""
        for row in rows:
            self.rounds[row.index] += 1

    def release(self, rows: list[Sequence]) -> None:
        """Forget rows."""
        for row in rows:
            del self.rounds[row.index]


class VaryingLength(DraftLength):
    """The case's draft lengths: they differ by row and round, and may be 0."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def choose(self, rows: list[Sequence]) -> list[int]:
        """By row and by how many rounds it has had."""
        return [gamma_of(self.run, row.index, len(row.accepted_lengths)) for row in rows]


def gamma_of(run: Run, row: int, turn: int) -> int:
    """The draft length that the case wishes for."""
    return run.gammas[(2 * row + turn) % len(run.gammas)]


def accepted_by_script(run: Run, row: int, turn: int) -> int:
    """How many drafted tokens the pattern makes right."""
    return run.pattern[(3 * row + turn) % len(run.pattern)]


def check_run(run: Run, parts: Parts) -> list[Broken]:
    """Decode, and compare every row with what it must come to."""
    parts.notes.clear()
    truth = [greedy(run.seed, run.dtype, prompt, NUM_KNOWN) for prompt in run.prompts]
    stop_ids = _stop_ids(run, truth)
    rows = [
        Sequence(i, list(p), budget, stop_ids)
        for i, (p, budget) in enumerate(zip(run.prompts, run.budgets, strict=True))
    ]
    pool = SequencePool(rows)
    try:
        engine = _engine(run, parts, truth)
        for _ in range(sum(run.budgets) + 1):
            if pool.done:
                break
            engine.step(pool)
    except Exception as error:  # a stranger's code may raise anything
        return parts.notes or [Broken("calls", f"{type(error).__name__}: {error}")]
    return parts.notes + [broken for row in rows for broken in _compare(row, run, parts, truth[row.index])]


def _engine(run: Run, parts: Parts, truth: list[tuple[int, ...]]) -> Engine:
    clock = Clock()
    target, draft = small_pair(run.seed, run.dtype)
    context = DrafterContext(
        target, target if run.draft_is_target else draft, lambda model: parts.align(model, clock), clock
    )

    def make() -> Drafter:
        if parts.drafter is not None:
            return parts.drafter(context)
        return ScriptedDrafter(run, truth) if run.pattern else ModelDrafter(context)

    return Engine(
        parts.align(target, clock),
        parts.wrap_drafter(make(), make, target),
        parts.verifier(),
        parts.wrap_scheduler(parts.scheduler(run.scheduler, run.batch, run.window), run),
        VaryingLength(run),
        clock,
    )


def _stop_ids(run: Run, truth: list[tuple[int, ...]]) -> frozenset[int]:
    stops = {0, *(prompt[0] for prompt in run.prompts)} if run.stops_in_prompts else set()
    if run.stop_every:
        stops |= {output[run.stop_every - 1] for output in truth}
    return frozenset(stops)


def _compare(row: Sequence, run: Run, parts: Parts, truth: tuple[int, ...]) -> list[Broken]:
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
    if parts.known_acceptance and parts.drafter is None and (run.pattern or run.draft_is_target):
        wanted = _accepted(row, run, len(expected))
        if row.accepted_lengths != wanted:
            return [
                Broken(
                    "acceptance", f"{name}: expected {wanted} accepted, round by round, found {row.accepted_lengths}"
                )
            ]
    return []


def _accepted(row: Sequence, run: Run, num_emitted: int) -> list[int]:
    """What every round of a row must accept, of what is emitted."""
    wanted: list[int] = []
    done = 0
    while done < num_emitted:
        gamma = min(gamma_of(run, row.index, len(wanted)), row.max_new_tokens - done - 1)
        right = gamma if run.draft_is_target else min(accepted_by_script(run, row.index, len(wanted)), gamma)
        wanted.append(min(right, num_emitted - done))
        done += right + 1
    return wanted
