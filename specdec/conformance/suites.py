"""Which cases a plug-in of each group must pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from specdec.alignment.base import Alignment
from specdec.conformance.calls import MISUSES, check_misuse, check_program
from specdec.conformance.cases import CROSSED, DecodingCase, decoding_cases, programs, ramp
from specdec.conformance.checked_drafter import CheckedDrafter
from specdec.conformance.checked_scheduler import CheckedScheduler
from specdec.conformance.checked_selector import check_selected_run
from specdec.conformance.decoding import Parts, check_run
from specdec.conformance.distributions import DRAWN_CASES, EMITTED_CASES, check_drawn, check_emitted
from specdec.conformance.explore import Family
from specdec.conformance.neighbours import check_budget, check_draft_length, law_cases
from specdec.conformance.programs import (
    growing_programs,
    leaving_program,
    long_program,
    returning_programs,
    sharing_programs,
    wide_program,
)
from specdec.conformance.promises import construct, reporting_errors
from specdec.conformance.selector_laws import NUMBERS_CASES, check_numbers
from specdec.conformance.verdicts import check_verdict, deep_cases, verdict_cases
from specdec.drafters.model import ModelDrafter
from specdec.registry import create, lookup

STATES = "recurrent states"
BUILT_IN_SCHEDULERS = ("static", "continuous", "exspec")
_RAGGED = ((1,), (0, 2, 3, 4, 5, 6, 7, 8, 9), (10, 11), (12, 13, 14, 15))
_LONG = (ramp(1, CROSSED - 2), ramp(2, CROSSED - 4), ramp(3, CROSSED - 5), (4, 5, 6))


def suite(group: str, name: str, params: dict[str, Any], scale: float) -> list[Family]:
    """The families of a group, for the plug-in ``group=name`` with its settings."""
    make = partial(create, group, name, **params)
    if group == "verifier":
        return verifier_suite(make, scale, lossy=lookup(group, name).lossy)
    suites = {
        "drafter": drafter_suite,
        "tree": tree_suite,
        "selector": selector_suite,
        "scheduler": scheduler_suite,
        "budget": budget_suite,
        "draft_length": draft_length_suite,
    }
    if group == "alignment":
        strategy: type[Alignment] = lookup(group, name).load()
        return alignment_suite(make, scale, strategy.restores_states)
    return suites[group](make, scale)


def not_claimed(group: str, name: str, params: dict[str, Any]) -> set[str]:
    """The optional promises that the plug-in does not make."""
    if group == "scheduler":
        scheduler = create(group, name, 1, 1, **params)
        claims = {"grouping": scheduler.groups_lengths, "waiting": scheduler.max_wait_rounds is not None}
    elif group == "verifier":
        samples = create(group, name, **params).samples
        claims = {"sampled": samples, "distribution": samples and not lookup(group, name).lossy}
    else:
        claims = {}
    return {promise for promise, claimed in claims.items() if not claimed}


def alignment_suite(make: Callable[..., Any], scale: float = 1.0, restores_states: bool = False) -> list[Family]:
    """Programs of calls, then decoding runs in which the strategy keeps both target and draft.

    Args:
        restores_states: the strategy claims models with recurrent states, too.
    """
    exact, rounded = (partial(check_program, make=make, dtype=dtype) for dtype in ("float64", "float32"))
    grown = [*growing_programs(), long_program()]
    hybrid = partial(check_program, make=make, hybrid=True)
    mixed = [leaving_program(), wide_program(trees=True), *returning_programs()]
    return [
        Family("chains", exact, programs(trees=False), _scaled(25, scale), [leaving_program(), wide_program()]),
        Family("trees", exact, programs(), _scaled(35, scale), [wide_program(trees=True)]),
        Family("float32", rounded, programs(), _scaled(12, scale)),
        Family("growth of the cache", exact, programs(max_rounds=3, grows=True), _scaled(5, scale), grown),
        Family("equal first tokens", exact, fixed=sharing_programs()),
        Family("misuse", partial(check_misuse, make=make), fixed=list(MISUSES)),
        *([Family(STATES, hybrid, programs(), _scaled(12, scale), mixed)] if restores_states else []),
        _decoding_runs(Parts(align=make), scale),
    ]


def drafter_suite(make: Callable[..., Any], scale: float = 1.0) -> list[Family]:
    """Decoding runs in which every draft is compared with a fresh one, and the distribution of sampled drafts."""
    parts = Parts(drafter=make, wrap_drafter=CheckedDrafter)
    inplace = Parts(partial(create, "alignment", "inplace"), drafter=make, wrap_drafter=CheckedDrafter)
    return [
        _decoding_runs(parts, scale),
        # With one slot per row, both caches outgrow their columns in any batch.
        Family("growth of the cache", partial(check_run, parts=inplace), fixed=_long_runs(BUILT_IN_SCHEDULERS[1:])),
        Family("sampled runs", partial(check_run, parts=parts), fixed=_sampled_runs()),
        Family("drawn drafts", partial(check_drawn, make=make), fixed=DRAWN_CASES),
    ]


def tree_suite(make: Callable[..., Any], scale: float = 1.0) -> list[Family]:
    """What a drafter must pass, for one that steps by a model and spends its nodes by this tree."""
    return drafter_suite(lambda context: ModelDrafter(replace(context, tree=make())), scale)


def selector_suite(make: Callable[..., Any], scale: float = 1.0) -> list[Family]:
    """The exact distribution of a round over all random numbers, and runs in which every choice is made afresh too."""
    run = partial(check_selected_run, make=make)
    sampled = decoding_cases(BUILT_IN_SCHEDULERS, scripted=False, temperature=1.0)
    return [
        Family("rounds of one row", partial(check_numbers, make=make), fixed=NUMBERS_CASES),
        Family("sampled runs", run, sampled, _scaled(10, scale), _sampled_runs()),
    ]


def verifier_suite(make: Callable[..., Any], scale: float = 1.0, lossy: bool = False) -> list[Family]:
    """Single verdicts, the distribution of emitted tokens unless the verifier is lossy, and decoding runs."""
    verdict = reporting_errors(lambda case: check_verdict(case, construct(make)))
    emitted = reporting_errors(lambda case: check_emitted(case, construct(make)))
    return [
        Family("verdicts", verdict, verdict_cases(), _scaled(200, scale), deep_cases()),
        Family("emitted tokens", emitted, fixed=() if lossy else EMITTED_CASES),
        _decoding_runs(Parts(verifier=make), scale),
    ]


def scheduler_suite(make: Callable[..., Any], scale: float = 1.0) -> list[Family]:
    """Decoding runs in which every choice is checked; in some of them rows often have equal lengths."""
    parts = Parts(scheduler=lambda _, batch, window: make(batch, window), wrap_scheduler=CheckedScheduler)
    return [
        Family("equal lengths", partial(check_run, parts=parts), fixed=_equal_lengths()),
        _decoding_runs(parts, scale, ("it",)),
    ]


def budget_suite(make: Callable[..., Any], scale: float = 1.0) -> list[Family]:
    """The exact distribution of rounds whose drafts the budget cuts, and decoding runs."""
    laws = Family("rounds of few rows", partial(check_budget, make=make), fixed=law_cases(scale))
    parts = Parts(budget=make)
    return [
        laws,
        _decoding_runs(parts, scale / 2),
        Family("sampled runs", partial(check_run, parts=parts), fixed=_sampled_runs()),
    ]


def draft_length_suite(make: Callable[..., Any], scale: float = 1.0) -> list[Family]:
    """The same for the lengths that drafts have."""
    laws = Family("rounds of few rows", partial(check_draft_length, make=make), fixed=law_cases(scale / 2))
    return [laws, _decoding_runs(Parts(draft_length=make), scale / 2)]


def _scaled(num_cases: int, scale: float) -> int:
    return max(1, round(num_cases * scale))


def _decoding_runs(parts: Parts, scale: float, schedulers: tuple[str, ...] = BUILT_IN_SCHEDULERS) -> Family:
    fixed = [*_patterns(schedulers), *_long_runs(schedulers), *_wide_runs(schedulers)]
    check = partial(check_run, parts=parts)
    return Family("decoding runs", check, decoding_cases(schedulers), _scaled(50, scale), fixed)


def _patterns(schedulers: tuple[str, ...]) -> list[DecodingCase]:
    """Every kind of acceptance under every scheduler, with rows that end at different times, and alone."""
    patterns: list[tuple[int, ...]] = [(0,), (4,), (0, 4), (1, 0, 3, 2, 4), ()]
    made = []
    for scheduler in schedulers:
        for pattern in patterns:
            made.append(DecodingCase(_RAGGED, (12, 5, 9, 1), 3, (4,), pattern, not pattern, scheduler))
        made.append(DecodingCase(_RAGGED[1:2], (12,), 1, (4,), patterns[3], scheduler=scheduler))
        for every in (1, 2, 3):
            made.append(DecodingCase(_RAGGED, (12,) * 4, 4, (4,), (4,), scheduler=scheduler, stop_every=every))
        made.append(DecodingCase(_RAGGED, (8,) * 4, 4, (3,), (2, 0), scheduler=scheduler, stops_in_prompts=True))
        made.append(DecodingCase(_RAGGED, (20,) * 4, 2, (3, 0), (), False, scheduler, dtype="float32"))
    return made


def _long_runs(schedulers: tuple[str, ...]) -> list[DecodingCase]:
    """Rows that exceed the initial columns of the storage: all in one batch, and beside a short new row."""
    return [
        DecodingCase(_LONG[:num_rows], (9, 12, 10, 8)[:num_rows], 3, (4,), pattern, not pattern, scheduler)
        for scheduler in schedulers
        for num_rows, pattern in ((3, (1, 0, 3, 2, 4)), (4, ()))
    ]


def _wide_runs(schedulers: tuple[str, ...]) -> list[DecodingCase]:
    """More rows than the drawn cases have, in larger batches, with longer drafts."""
    prompts = tuple(ramp(row, 1 + row % 4) for row in range(9))
    budgets = (12, 5, 9, 12, 3, 8, 11, 6, 10)
    return [
        DecodingCase(prompts, budgets, batch, (8, 3, 6), (8, 0, 3, 5, 1, 7, 2), False, scheduler, window=9)
        for scheduler in schedulers
        for batch in (6, 9)
    ]


def _sampled_runs() -> list[DecodingCase]:
    settings = (
        ("static", (4,), False, 1.0),
        ("exspec", (3, 1), True, 0.7),
        ("continuous", (2, 4, 0), False, 1.5),
    )
    return [
        DecodingCase(_RAGGED, (12, 5, 9, 8), 3, gammas, (), is_target, scheduler, temperature=temperature)
        for scheduler, gammas, is_target, temperature in settings
    ]


def _equal_lengths() -> list[DecodingCase]:
    """Rows of equal lengths, adjacent or far apart, that change with what each accepts."""
    lengths = (2, 3, 5, 5, 4, 4, 7, 6, 2, 3)
    prompts = tuple(ramp(start, length) for start, length in enumerate(lengths))
    return [
        DecodingCase(prompts, (9,) * len(prompts), batch, (2,), pattern, window=window)
        for batch, window in ((2, 8), (3, 10), (2, 4))
        for pattern in ((0,), (1, 0, 2), (0, 1, 2, 2, 1))
    ]
