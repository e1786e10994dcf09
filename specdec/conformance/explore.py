"""Search for broken promises: many cases per family, then the smallest one for every promise that one of them broke."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from hypothesis import HealthCheck, Phase, find, settings
from hypothesis.errors import NoSuchExample
from hypothesis.strategies import SearchStrategy

from specdec.conformance.promises import Broken, Finding
from specdec.errors import ConfigError

MAX_SHRINKS = 250  # cases tried per promise to make a failing one smaller


@dataclass(slots=True)
class Family:
    """Cases of one kind, and the check that runs one of them."""

    name: str
    check: Callable[[Any], list[Broken]]
    drawn: SearchStrategy[Any] | None = None
    num_drawn: int = 0
    fixed: Sequence[Any] = ()
    outcomes: dict[Any, list[Broken]] = field(default_factory=dict)
    refused: dict[Any, str] = field(default_factory=dict)  # cases that the plug-in refuses to be made for

    def run(self, case: Any) -> list[Broken]:
        """Check a case once."""
        if case in self.refused:
            return []
        if case not in self.outcomes:
            try:
                self.outcomes[case] = self.check(case)
            except ConfigError as error:
                self.refused[case] = str(error)
                return []
        return self.outcomes[case]


def explore(
    families: list[Family],
    promises: dict[str, str],
    *,
    shrink: bool = True,
    stop_at_first: bool = False,
    progress: Callable[[str], None] | None = None,
) -> list[Finding]:
    """Run all families; one finding per promise, in the order of ``promises``.

    Raises:
        ConfigError: the plug-in refuses every case, for this reason.
    """
    for family in families:
        if progress is not None:
            progress(family.name)
        for case in family.fixed:
            family.run(case)
            if stop_at_first and _broken_names([family]):
                break
        if not (stop_at_first and _broken_names([family])):
            _draw(family, until_broken=stop_at_first)
        if stop_at_first and _broken_names([family]):
            break
    num_cases = sum(len(family.outcomes) for family in families)
    refused = [reason for family in families for reason in family.refused.values()]
    if refused and num_cases == 0:
        raise ConfigError(refused[0])
    if unknown := _broken_names(families) - set(promises):
        raise KeyError(f"a check reports promises that the group does not make, and nobody would see: {unknown}")
    outcomes = [outcome for family in families for outcome in family.outcomes.values()]
    num_broken = {promise: sum(_breaks(outcome, promise) for outcome in outcomes) for promise in promises}
    findings = []
    for promise, text in promises.items():
        if num_broken[promise] == 0:
            findings.append(Finding(promise, text, num_cases))
            continue
        if progress is not None and shrink:
            progress(f"smallest case that breaks {promise!r}")
        detail, smallest = _smallest(families, promise, shrink)
        findings.append(Finding(promise, text, num_cases, num_broken[promise], detail, smallest))
    return findings


def _draw(family: Family, until_broken: bool) -> None:
    """Let hypothesis draw the family's cases; the same ones in every process."""
    if family.drawn is None or family.num_drawn == 0:
        return

    def seen(case: Any) -> bool:
        return bool(family.run(case)) and until_broken

    _find(family, seen, family.num_drawn, (Phase.generate,))


def _find(family: Family, condition: Callable[[Any], bool], num_cases: int, phases: tuple[Phase, ...]) -> Any:
    assert family.drawn is not None
    options = settings(
        max_examples=num_cases,
        phases=phases,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    try:
        return find(family.drawn, condition, settings=options, random=Random(0))
    except NoSuchExample:
        return None


def _smallest(families: list[Family], promise: str, shrink: bool) -> tuple[str, Any]:
    """The smallest case that breaks a promise, and how it shows."""
    candidates = [
        (case in family.fixed, len(str(case)), place, family, case)
        for place, family in enumerate(families)
        for case, outcome in family.outcomes.items()
        if _breaks(outcome, promise)
    ]
    fixed, _, _, family, smallest = min(candidates, key=lambda candidate: candidate[:3])  # a drawn case can shrink
    if shrink and not fixed:
        smallest = _shrunk(family, promise) or smallest
    return next(broken.detail for broken in family.run(smallest) if broken.promise == promise), smallest


def _shrunk(family: Family, promise: str) -> Any:
    budget = len(family.outcomes) + MAX_SHRINKS

    def condition(case: Any) -> bool:
        if case not in family.outcomes and len(family.outcomes) >= budget:
            return False
        return _breaks(family.run(case), promise)

    return _find(family, condition, family.num_drawn, (Phase.generate, Phase.shrink))


def _breaks(outcome: list[Broken], promise: str) -> bool:
    return any(broken.promise == promise for broken in outcome)


def _broken_names(families: list[Family]) -> set[str]:
    return {broken.promise for family in families for outcome in family.outcomes.values() for broken in outcome}
