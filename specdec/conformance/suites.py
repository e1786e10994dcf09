"""Which cases a plug-in of each group must pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from specdec.conformance.calls import MISUSES, check_misuse, check_program
from specdec.conformance.cases import (
    CROSSED,
    Run,
    programs,
    ramp,
    runs,
)
from specdec.conformance.contracts import CheckedDrafter, CheckedScheduler
from specdec.conformance.decoding import Parts, check_run
from specdec.conformance.distributions import DRAWN_CASES, EMITTED_CASES, check_drawn, check_emitted
from specdec.conformance.explore import Family
from specdec.conformance.programs import growing_programs, leaving_program, long_program, wide_program
from specdec.conformance.verdicts import check_verdict, deep_cases, verdict_cases
from specdec.core.clock import Clock
from specdec.models.causal_lm import CausalLM
from specdec.registry import create, lookup
from specdec.verifiers.base import Verifier

BUILT_IN_SCHEDULERS = ("static", "continuous", "exspec")
_RAGGED = ((1,), (0, 2, 3, 4, 5, 6, 7, 8, 9), (10, 11), (12, 13, 14, 15))
_LONG = (ramp(1, CROSSED - 2), ramp(2, CROSSED - 4), ramp(3, CROSSED - 5), (4, 5, 6))


def suite(group: str, name: str, params: dict[str, Any], scale: float) -> list[Family]:
    """The families of a group, for the plug-in ``group=name`` with its settings."""
    make = partial(create, group, name, **params)
    if group == "scheduler":
        return scheduler_suite(lambda *sizes: make(*sizes), scale)
    if group == "verifier":
        return verifier_suite(make, scale, lossy=lookup(group, name).lossy)
    families: dict[str, Callable[[Any, float], list[Family]]] = {
        "alignment": alignment_suite,
        "drafter": drafter_suite,
    }
    return families[group](make, scale)


def not_claimed(group: str, name: str, params: dict[str, Any]) -> set[str]:
    """The promises that the plug-in does not make: their checks have nothing to look at."""
    if group == "scheduler":
        scheduler = create(group, name, 1, 1, **params)
        claims = {"grouping": scheduler.groups_lengths, "waiting": scheduler.max_wait_rounds is not None}
    elif group == "verifier":
        samples = type(create(group, name, **params)).verify_sampled is not Verifier.verify_sampled
        claims = {"sampled": samples, "distribution": samples and not lookup(group, name).lossy}
    else:
        claims = {}
    return {promise for promise, claimed in claims.items() if not claimed}


def alignment_suite(make: Any, scale: float = 1.0) -> list[Family]:
    """Single calls, then whole runs in which target and draft are both kept by the strategy."""

    def align(model: CausalLM, clock: Clock) -> Any:
        return make(model, clock)

    def program_check(dtype: str) -> Any:
        return lambda program: check_program(program, align, dtype)

    count = lambda number: max(1, round(number * scale))  # noqa: E731
    return [
        Family(
            "chains", program_check("float64"), programs(trees=False), count(25), [leaving_program(), wide_program()]
        ),
        Family("trees", program_check("float64"), programs(), count(35), [wide_program(trees=True)]),
        Family("float32", program_check("float32"), programs(), count(12)),
        Family(
            "growth of the cache",
            program_check("float64"),
            programs(max_rounds=3, grows=True),
            count(5),
            [*growing_programs(), long_program()],
        ),
        Family("misuse", lambda misuse: check_misuse(misuse, align), fixed=list(MISUSES)),
        *_run_families(Parts(align=align), count),
    ]


def _run_families(
    parts: Parts, count: Callable[[int], int], schedulers: tuple[str, ...] = BUILT_IN_SCHEDULERS
) -> list[Family]:
    check = partial(check_run, parts=parts)
    return [
        Family(
            "decoding runs",
            check,
            runs(schedulers),
            count(50),
            [*_patterns(schedulers), *_long_runs(schedulers), *_wide_runs(schedulers)],
        ),
    ]


def _patterns(schedulers: tuple[str, ...]) -> list[Run]:
    """Every kind of acceptance under every scheduler, with rows that end at different times, and alone."""
    patterns: list[tuple[int, ...]] = [(0,), (4,), (0, 4), (1, 0, 3, 2, 4), ()]
    made = []
    for scheduler in schedulers:
        for pattern in patterns:
            made.append(Run(_RAGGED, (12, 5, 9, 1), 3, (4,), pattern, not pattern, scheduler))
        made.append(Run(_RAGGED[1:2], (12,), 1, (4,), patterns[3], scheduler=scheduler))
        for every in (1, 2, 3):
            made.append(Run(_RAGGED, (12, 12, 12, 12), 4, (4,), (4,), scheduler=scheduler, stop_every=every))
        made.append(Run(_RAGGED, (8, 8, 8, 8), 4, (3,), (2, 0), scheduler=scheduler, stops_in_prompts=True))
        made.append(Run(_RAGGED, (20, 20, 20, 20), 2, (3, 0), (), False, scheduler, dtype="float32"))
    return made


def _long_runs(schedulers: tuple[str, ...]) -> list[Run]:
    """Rows that cross the columns that storage begins with: all in one batch, and beside a short newcomer."""
    return [
        Run(_LONG[:num_rows], (9, 12, 10, 8)[:num_rows], 3, (4,), pattern, not pattern, scheduler)
        for scheduler in schedulers
        for num_rows, pattern in ((3, (1, 0, 3, 2, 4)), (4, ()))
    ]


def _wide_runs(schedulers: tuple[str, ...]) -> list[Run]:
    """More rows than the drawn cases have, in larger batches, with longer drafts."""
    prompts = tuple(ramp(row, 1 + row % 4) for row in range(9))
    budgets = (12, 5, 9, 12, 3, 8, 11, 6, 10)
    return [
        Run(prompts, budgets, batch, (8, 3, 6), (8, 0, 3, 5, 1, 7, 2), False, scheduler, window=9)
        for scheduler in schedulers
        for batch in (6, 9)
    ]


def drafter_suite(make: Any, scale: float = 1.0) -> list[Family]:
    """Runs in which every draft is compared with a fresh one; and what is drawn, with its probabilities."""
    kept, inplace = (
        Parts(drafter=make, wrap_drafter=CheckedDrafter),
        Parts(
            lambda model, clock: create("alignment", "inplace", model, clock),
            drafter=make,
            wrap_drafter=CheckedDrafter,
        ),
    )
    return [
        *_run_families(kept, lambda number: max(1, round(number * scale))),
        # The draft's cache and the target's in slots, which outgrow their columns whatever the batch does.
        Family("growth of the cache", partial(check_run, parts=inplace), fixed=_long_runs(BUILT_IN_SCHEDULERS[1:])),
        Family("sampled runs", partial(check_run, parts=kept), fixed=_sampled_runs()),
        Family("drawn drafts", lambda case: check_drawn(case, make), fixed=DRAWN_CASES),
    ]


def _sampled_runs() -> list[Run]:
    return [
        Run(_RAGGED, (12, 5, 9, 8), 3, gammas, (), is_target, scheduler, temperature=temperature)
        for scheduler, gammas, is_target, temperature in (
            ("static", (4,), False, 1.0),
            ("exspec", (3, 1), True, 0.7),
            ("continuous", (2, 4, 0), False, 1.5),
        )
    ]


def verifier_suite(make: Any, scale: float = 1.0, lossy: bool = False) -> list[Family]:
    """Single verdicts, whole runs, and what is emitted where rows sample, unless that is said to be lossy."""
    count = lambda number: max(1, round(number * scale))  # noqa: E731
    return [
        Family("verdicts", lambda case: check_verdict(case, make()), verdict_cases(), count(200), deep_cases()),
        Family("emitted tokens", lambda case: check_emitted(case, make()), fixed=() if lossy else EMITTED_CASES),
        *_run_families(Parts(verifier=make), count),
    ]


def scheduler_suite(make: Any, scale: float = 1.0) -> list[Family]:
    """Runs in which every choice is looked at; in some of them, rows come to equal lengths now and then."""
    parts = Parts(
        scheduler=lambda name, batch, window: make(batch, window),
        wrap_scheduler=lambda scheduler, run, notes: CheckedScheduler(scheduler, run.batch, notes),
    )
    return [
        Family("equal lengths", partial(check_run, parts=parts), fixed=_meeting_runs()),
        *_run_families(parts, lambda number: max(1, round(number * scale)), ("it",)),
    ]


def _meeting_runs() -> list[Run]:
    """Rows whose lengths are equal, next to each other or far apart, and change with what each accepts."""
    lengths = (2, 3, 5, 5, 4, 4, 7, 6, 2, 3)
    prompts = tuple(ramp(start, length) for start, length in enumerate(lengths))
    return [
        Run(prompts, (9,) * len(prompts), batch, (2,), pattern, window=window)
        for batch, window in ((2, 8), (3, 10), (2, 4))
        for pattern in ((0,), (1, 0, 2), (0, 1, 2, 2, 1))
    ]
