"""The conformance kit against planted bugs: each breaks its promise, in a case that is clean without the bug."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mutations import ALL
from mutations.planting import Mutation
from rich.console import Console
from rich.table import Table

from specdec.conformance.explore import explore
from specdec.conformance.promises import BY_GROUP, RUN

RESULTS: list[tuple[str, str, str]] = []
SHORT = {mutation.group: mutation for mutation in reversed(ALL)}.values()
IN_CI = {mutation.promise: mutation for mutation in reversed(ALL)}.values()
"""The first bug of every group is short, the first for every promise is for CI; the others run at night."""


@pytest.fixture(scope="module", autouse=True)
def listed(pytestconfig: pytest.Config) -> Iterator[None]:
    """Print the bugs that were planted and what each broke (with ``-s``)."""
    yield
    table = Table("planted in", "bug", "broken promise, where it showed first", title=f"{len(RESULTS)} planted bugs")
    for result in RESULTS:
        table.add_row(*result)
    Console(width=160).print(table)


def marks_of(mutation: Mutation) -> tuple[pytest.MarkDecorator, ...]:
    if mutation in SHORT:
        return ()
    return (pytest.mark.slow if mutation in IN_CI else pytest.mark.nightly,)


@pytest.mark.parametrize(
    "mutation",
    [pytest.param(one, id=f"{one.plugin}: {one.name}", marks=marks_of(one)) for one in ALL],
)
def test_a_planted_bug_is_caught_under_the_right_promise(mutation: Mutation, monkeypatch):
    with monkeypatch.context() as patch:
        families = mutation.planted(patch)
        explore(families, BY_GROUP[mutation.group], shrink=False, stop_at_first=True)
        shown = [(place, case) for place, family in enumerate(families) for case in family.outcomes]
        place, case = next((one for one in shown if families[one[0]].outcomes[one[1]]), shown[-1])
        for other in [case for case in families[place].fixed if case not in families[place].outcomes][:1]:
            families[place].run(other)  # which must not take back what was found before
    found = families[place].outcomes[case]
    first = next((broken for broken in found if broken.promise == mutation.promise), None)
    result = f"{first.promise}: {first.detail}" if first else f"NOT CAUGHT as {mutation.promise}, but {found}"
    RESULTS.append((mutation.plugin, mutation.name, result))
    assert first is not None, f"{mutation.plugin}, {mutation.name}: not caught as {mutation.promise!r}, but {found}"
    assert mutation.suite()[place].run(case) == [], "the case breaks promises without the bug, too"


def test_the_list_is_long_and_names_every_promise():
    """Some bug breaks each promise that a group makes of its own, and each of those on runs: no check is idle."""
    assert len({(mutation.plugin, mutation.name) for mutation in ALL}) == len(ALL) >= 50
    broken = {(mutation.group, mutation.promise) for mutation in ALL}
    own = {(group, promise) for group, promises in BY_GROUP.items() for promise in promises.keys() - RUN.keys()}
    assert own - broken == set()
    assert RUN.keys() - {promise for _, promise in broken} == set()
