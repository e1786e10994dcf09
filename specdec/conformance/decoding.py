"""Whole decoding runs of small models, whose output, acceptance and end are known in advance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.conformance.calls import MakeAlignment
from specdec.conformance.cases import VOCAB, Run
from specdec.conformance.models import greedy, sampled, small_pair, tokenizers
from specdec.conformance.promises import Broken, cannot_be_made
from specdec.core.clock import Clock
from specdec.core.round import Draft
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence, SequencePool
from specdec.draft_lengths.base import DraftLength
from specdec.drafters.base import Drafter
from specdec.drafters.context import DrafterContext
from specdec.drafters.model import ModelDrafter
from specdec.engine.loop import RoundLoop
from specdec.errors import ConfigError
from specdec.models.causal_lm import CausalLM
from specdec.registry import create
from specdec.schedulers.base import Scheduler
from specdec.verifiers.base import Verifier

Truth = list[tuple[int, ...]]
Notes = list[Broken]


@dataclass(slots=True)
class Parts:
    """What an engine is made of; a part that is not under test is the built-in one."""

    align: MakeAlignment = lambda model, clock: create("alignment", "eqspec", model, clock)
    drafter: Callable[[DrafterContext], Drafter] | None = None  # None: as the case says
    verifier: Callable[[], Verifier] = lambda: create("verifier", "greedy")
    scheduler: Callable[[str, int, int], Scheduler] = lambda name, *sizes: create("scheduler", name, *sizes)
    # The wrappers note what they see in the list of the run that they are given.
    wrap_drafter: Callable[[Drafter, Callable[[], Drafter], CausalLM, Notes], Drafter] = lambda drafter, *_: drafter
    wrap_scheduler: Callable[[Scheduler, Run, Notes], Scheduler] = lambda scheduler, *_: scheduler


class ScriptedDrafter(Drafter):
    """Drafts the true output, and a wrong token from the place on that the case's pattern names."""

    def __init__(self, run: Run, truth: Truth) -> None:
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
    """Decode, and compare every row with what it must come to.

    Raises:
        ConfigError: a plug-in refuses to be made for this case, as it may.
    """
    truth = _truth(run)
    notes: Notes = []  # of this run alone: what it returns must not change with the next
    rows = _rows(run, _stop_ids(run, truth))
    pool = SequencePool(rows)
    try:
        engine = _engine(run, parts, truth, notes)
    except ConfigError:
        raise
    except Exception as error:  # third-party code may raise anything
        return [cannot_be_made(error)]
    try:
        for _ in range(sum(run.budgets) + 1):
            if pool.done:
                break
            engine.step(pool)
    except Exception as error:  # after what was noted it is taken for its consequence
        return notes or [Broken("calls", f"{type(error).__name__}: {error}")]
    return notes + [broken for row in rows for broken in _compare(row, run, parts, truth[row.index])]


def _truth(run: Run) -> Truth:
    if run.temperature:
        return [
            sampled(run.seed, run.dtype, prompt, run.num_known, index, run.temperature)
            for index, prompt in enumerate(run.prompts)
        ]
    return [greedy(run.seed, run.dtype, prompt, run.num_known) for prompt in run.prompts]


def _rows(run: Run, stop_ids: frozenset[int]) -> list[Sequence]:
    return [
        Sequence(
            i, list(prompt), budget, stop_ids, SamplingParams(run.temperature, seed=i) if run.temperature else None
        )
        for i, (prompt, budget) in enumerate(zip(run.prompts, run.budgets, strict=True))
    ]


def _engine(run: Run, parts: Parts, truth: Truth, notes: Notes) -> RoundLoop:
    clock = Clock()
    target, draft = small_pair(run.seed, run.dtype)
    ours, theirs = tokenizers()
    context = DrafterContext(
        target,
        target if run.draft_is_target else draft,
        lambda model: parts.align(model, clock),
        clock,
        ours,
        theirs,
        lambda row: list(truth[row.index]),
    )

    def make() -> Drafter:
        if parts.drafter is not None:
            return parts.drafter(context)
        return ScriptedDrafter(run, truth) if run.pattern else ModelDrafter(context)

    return RoundLoop(
        parts.align(target, clock),
        parts.wrap_drafter(make(), make, target, notes),
        # The one whose tokens are those of plain sampling, whatever is drafted.
        create("verifier", "naive") if run.temperature else parts.verifier(),
        parts.wrap_scheduler(parts.scheduler(run.scheduler, run.batch, run.window), run, notes),
        VaryingLength(run),
        clock,
    )


def _stop_ids(run: Run, truth: Truth) -> frozenset[int]:
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
    if parts.drafter is None and (run.pattern or run.draft_is_target):
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
