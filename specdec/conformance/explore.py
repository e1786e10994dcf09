"""Search for broken promises: run many cases per family, then find the smallest case that breaks each promise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from hypothesis import HealthCheck, Phase, find, settings
from hypothesis.errors import NoSuchExample
from hypothesis.strategies import SearchStrategy

from specdec.conformance.promises import Broken, PromiseFinding, RefusedError
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
    refused: dict[Any, str] = field(default_factory=dict)  # cases that the plug-in's constructor refuses

    def run(self, case: Any) -> list[Broken]:
        """Check a case once."""
        if case in self.refused:
            return []
        if case not in self.outcomes:
            try:
                self.outcomes[case] = self.check(case)
            except RefusedError as error:
                self.refused[case] = str(error)
                return []
        return self.outcomes[case]

    def run_all(self, stop_at_first: bool) -> None:
        """Check the fixed cases, then drawn ones (the same in every process); up to the first broken one if asked."""
        for case in self.fixed:
            if self.run(case) and stop_at_first:
                return
        if self.num_drawn:
            self.find(lambda case: bool(self.run(case)) and stop_at_first, Phase.generate)

    def find(self, condition: Callable[[Any], bool], *phases: Phase) -> Any:
        """A drawn case that meets the condition, or None."""
        assert self.drawn is not None
        options = settings(
            max_examples=self.num_drawn,
            phases=phases,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        try:
            return find(self.drawn, condition, settings=options, random=Random(0))
        except NoSuchExample:
            return None


def explore(
    families: list[Family],
    promises: dict[str, str],
    *,
    shrink: bool = True,
    stop_at_first: bool = False,
    progress: Callable[[str], None] = lambda what: None,
) -> list[PromiseFinding]:
    """Run all families; one finding per promise, in the order of ``promises``.

    Raises:
        ConfigError: the plug-in's constructor refuses every case, for this reason.
    """
    for family in families:
        progress(family.name)
        family.run_all(stop_at_first)
        if stop_at_first and any(family.outcomes.values()):
            break
    outcomes = [outcome for family in families for outcome in family.outcomes.values()]
    refused = [reason for family in families for reason in family.refused.values()]
    if refused and not outcomes:
        raise ConfigError(refused[0])
    if unknown := {broken.promise for outcome in outcomes for broken in outcome} - set(promises):
        raise KeyError(f"a check reports promises that this group does not make: {unknown}")
    findings = []
    for promise, text in promises.items():
        num_broken = sum(_breaks(outcome, promise) for outcome in outcomes)
        if num_broken == 0:
            findings.append(PromiseFinding(promise, text, len(outcomes)))
            continue
        if shrink:
            progress(f"smallest case that breaks {promise!r}")
        detail, smallest = _smallest(families, promise, shrink)
        findings.append(PromiseFinding(promise, text, len(outcomes), num_broken, detail, smallest))
    return findings


def _smallest(families: list[Family], promise: str, shrink: bool) -> tuple[str, Any]:
    """What was observed in the smallest case that breaks a promise, and the case."""
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

    return family.find(condition, Phase.generate, Phase.shrink)


def _breaks(outcome: list[Broken], promise: str) -> bool:
    return any(broken.promise == promise for broken in outcome)
