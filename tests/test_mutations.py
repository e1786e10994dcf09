"""The conformance kit against planted bugs: each is caught, and none is seen where nothing is planted."""

from __future__ import annotations

import pytest
from mutations import ALIGNMENT, DRAFTER, ENGINE, Mutation, rebuilt
from rich.console import Console
from rich.table import Table

from specdec.alignment.base import Alignment
from specdec.conformance import decoding
from specdec.conformance.explore import Family, explore
from specdec.conformance.promises import BY_GROUP
from specdec.conformance.suites import alignment_suite, drafter_suite
from specdec.drafters.base import Drafter

RESULTS: list[tuple[str, str, str]] = []


def broken(families: list[Family], group: str) -> list[str]:
    findings = explore(families, BY_GROUP[group], shrink=False, stop_at_first=True)
    return [f"{finding.promise}: {finding.detail}" for finding in findings if not finding.kept]


def plugged(module: object, base: type) -> type:
    """The plug-in class that a module defines."""
    return next(
        thing
        for thing in vars(module).values()
        if isinstance(thing, type) and issubclass(thing, base) and thing.__module__ == module.__name__
    )


def note(mutation: Mutation, found: list[str]) -> None:
    RESULTS.append((mutation.entry, mutation.name, found[0] if found else "NOT CAUGHT"))
    assert found, f"{mutation.entry}: {mutation.name} is not caught"


@pytest.mark.parametrize("mutation", ALIGNMENT, ids=lambda m: f"{m.entry}: {m.name}")
def test_bug_in_a_strategy_is_caught(mutation):
    note(mutation, broken(alignment_suite(plugged(mutation.plant(), Alignment)), "alignment"))


@pytest.mark.parametrize("mutation", DRAFTER, ids=lambda m: m.name)
def test_bug_in_the_drafter_is_caught(mutation):
    note(mutation, broken(drafter_suite(plugged(mutation.plant(), Drafter)), "drafter"))


@pytest.mark.parametrize("mutation", ENGINE, ids=lambda m: m.name)
def test_bug_in_the_engine_is_caught(mutation, monkeypatch):
    from specdec.alignment.eqspec import EqspecAlignment

    monkeypatch.setattr(decoding, "Engine", mutation.plant().Engine)
    families = [family for family in alignment_suite(EqspecAlignment) if family.name == "decoding runs"]
    note(mutation, broken(families, "alignment"))


STRATEGIES = sorted({mutation.entry for mutation in ALIGNMENT})


@pytest.mark.parametrize(
    "entry", [STRATEGIES[0], *(pytest.param(entry, marks=pytest.mark.nightly) for entry in STRATEGIES[1:])]
)
def test_a_strategy_that_is_rebuilt_without_a_bug_passes(entry):
    """What the tests above catch is the bug, not the rebuilding."""
    assert broken(alignment_suite(plugged(rebuilt(entry), Alignment), 0.05), "alignment") == []


def test_drafter_and_engine_rebuilt_without_a_bug_pass(monkeypatch):
    from specdec.alignment.eqspec import EqspecAlignment

    assert broken(drafter_suite(plugged(rebuilt("drafters.model"), Drafter), 0.1), "drafter") == []
    monkeypatch.setattr(decoding, "Engine", rebuilt("engine").Engine)
    assert broken(alignment_suite(EqspecAlignment, 0.1), "alignment") == []


def test_the_list_and_its_result(capsys):
    """Printed last, over all mutations that ran."""
    table = Table("planted in", "bug", "broken promise, where it showed first", title="mutation test")
    for result in RESULTS:
        table.add_row(*result)
    with capsys.disabled():
        Console(width=160).print(table)
    assert len({(m.entry, m.name) for m in (*ALIGNMENT, *DRAFTER, *ENGINE)}) >= 15
