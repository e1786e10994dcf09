"""A wrapped drafter passes the whole contract on, also what the contract gets later."""

from __future__ import annotations

import inspect

from specdec.drafters.base import Drafter
from specdec.drafters.none import NoDrafter
from specdec.drafters.wrapped import SAID, TOLD, WrappedDrafter


class Inner(NoDrafter):
    max_length, siblings, hidden_layers, probe_ids, probes_MD, reads_cache = 3, "drawn", (1,), (7,), None, True

    def __init__(self) -> None:
        self.calls: list[tuple] = []


def test_everything_of_the_contract_is_passed_on(monkeypatch):
    contract = {name for name in vars(Drafter) if not name.startswith("_")}
    assert contract == {*SAID, *TOLD} | {name for name in vars(WrappedDrafter) if not name.startswith("_")}
    inner = Inner()
    drafter = WrappedDrafter(inner)
    assert [getattr(drafter, name) for name in SAID] == [3, "drawn", (1,), (7,), None, True]
    methods = [name for name in contract if inspect.isfunction(vars(Drafter)[name])]
    for name in methods:
        monkeypatch.setattr(Inner, name, lambda self, *values, name=name: self.calls.append((name, *values)))
    drafter.width, drafter.reports_certainty = 2, True
    for name in methods:
        count = len(inspect.signature(vars(Drafter)[name]).parameters) - 1
        getattr(drafter, name)(*range(count))
        assert inner.calls.pop() == (name, *range(count))
    assert (inner.width, inner.reports_certainty) == (2, True)
