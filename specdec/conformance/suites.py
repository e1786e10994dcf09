"""Which cases a plug-in of each group must pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from specdec.clock import Clock
from specdec.conformance.calls import MISUSES, check_misuse, check_program
from specdec.conformance.cases import Run, long_program, programs, runs
from specdec.conformance.contracts import CheckedDrafter, CheckedScheduler, check_verdict, verdict_cases
from specdec.conformance.decoding import Parts, check_run
from specdec.conformance.explore import Family
from specdec.model import CausalLM
from specdec.registry import create

BUILT_IN_SCHEDULERS = ("static", "continuous", "exspec")
_RAGGED = ((1,), (0, 2, 3, 4, 5, 6, 7, 8, 9), (10, 11), (12, 13, 14, 15))


def suite(group: str, name: str, params: dict[str, Any], scale: float) -> list[Family]:
    """The families of a group, for the plug-in ``group=name`` with its settings."""
    make = partial(create, group, name, **params)
    families: dict[str, Callable[[Any, float], list[Family]]] = {
        "alignment": alignment_suite,
        "drafter": drafter_suite,
        "verifier": _verifier_suite,
        "scheduler": _scheduler_suite,
    }
    if group == "scheduler":
        return _scheduler_suite(lambda *sizes: make(*sizes), scale)
    return families[group](make, scale)


def alignment_suite(make: Any, scale: float = 1.0) -> list[Family]:
    """Single calls, then whole runs in which target and draft are both kept by the strategy."""

    def align(model: CausalLM, clock: Clock) -> Any:
        return make(model, clock)

    def program_check(dtype: str) -> Any:
        return lambda program: check_program(program, align, dtype)

    count = lambda number: max(1, round(number * scale))  # noqa: E731
    return [
        Family("chains", program_check("float64"), programs(trees=False), count(25)),
        Family("trees", program_check("float64"), programs(), count(35)),
        Family("float32", program_check("float32"), programs(), count(12)),
        Family("growth of the cache", program_check("float64"), fixed=[long_program()]),
        Family("misuse", lambda misuse: check_misuse(misuse, align), fixed=list(MISUSES)),
        *_run_families(Parts(align=align), count),
    ]


def _run_families(
    parts: Parts, count: Callable[[int], int], schedulers: tuple[str, ...] = BUILT_IN_SCHEDULERS
) -> list[Family]:
    check = partial(check_run, parts=parts)
    return [
        Family("decoding runs", check, runs(schedulers), count(50), _patterns(schedulers)),
    ]


def _patterns(schedulers: tuple[str, ...]) -> list[Any]:
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


def drafter_suite(make: Any, scale: float = 1.0) -> list[Family]:
    """Runs in which every draft is compared with a fresh one."""
    parts = Parts(drafter=make)
    parts.wrap_drafter = lambda drafter, fresh, target: CheckedDrafter(drafter, fresh, target, parts.notes)
    return _run_families(parts, lambda number: max(1, round(number * scale)))


def _verifier_suite(make: Any, scale: float) -> list[Family]:
    count = lambda number: max(1, round(number * scale))  # noqa: E731
    return [
        Family("verdicts", lambda case: check_verdict(case, make()), verdict_cases(), count(200)),
        *_run_families(Parts(verifier=make), count),
    ]


def _scheduler_suite(make: Any, scale: float) -> list[Family]:
    parts = Parts(scheduler=lambda name, batch, window: make(batch, window))
    parts.wrap_scheduler = lambda scheduler, run: CheckedScheduler(scheduler, run.batch, parts.notes)
    return _run_families(parts, lambda number: max(1, round(number * scale)), ("it",))
