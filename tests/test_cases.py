"""Products of cases: any two values meet, or every value is there, in the short tests, and nothing is lost."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from cases import all_pairs, each_value, nightly_but, short_only


def test_all_pairs_meet_in_the_short_form_and_nothing_is_lost():
    axes = (["a", "b", "c", "d"], ["x", "y"], [(1, 5), (4, 5), (11, 3)], ["float32", "float64"])
    cases = all_pairs(*axes)
    flat = [(name, kind, *shape, dtype) for name, kind, shape, dtype in product(*axes)]
    assert [case.values for case in cases] == flat
    short = [case.values for case in cases if not case.marks]
    assert len(short) <= 14 < len(flat)
    met = {pair for name, kind, *shape, dtype in short for pair in combinations((name, kind, tuple(shape), dtype), 2)}
    assert met == {pair for case in product(*axes) for pair in combinations(case, 2)}


def test_every_value_is_in_the_short_form_and_the_other_pairs_wait_for_the_night():
    axes = (["a", "b", "c", "d"], ["x", "y"], [(1, 5), (4, 5), (11, 3)], ["float32", "float64"])
    pairs, cases = all_pairs(*axes), each_value(*axes)
    assert [case.values for case in cases] == [case.values for case in pairs]
    short = [case.values for case in cases if not case.marks]
    assert all([mark.name for mark in case.marks] == ["nightly"] for case in cases if case.marks)
    assert len(short) <= 5 < sum(not case.marks for case in pairs)
    for place, values in enumerate((["a", "b", "c", "d"], ["x", "y"], [1, 4, 11], [5, 3], ["float32", "float64"])):
        assert {case[place] for case in short} == set(values)


def test_what_is_not_named_is_slow_and_marks_are_kept():
    night = pytest.param("d", 3, marks=pytest.mark.nightly)
    cases = short_only([("a", 1), ("a", 2), ("b", 1), ("c", 1), night], "a", ("b", 1))
    assert [case.values for case in cases] == [("a", 1), ("a", 2), ("b", 1), ("c", 1), ("d", 3)]
    assert [[mark.name for mark in case.marks] for case in cases] == [[], [], [], ["slow"], ["nightly"]]
    named = short_only([("a", 1), ("a", 2), ("b", 1), ("c", 1), night], ("a", 1), ci=["b", ("a", 2)])
    assert [[mark.name for mark in case.marks] for case in named] == [[], ["slow"], ["slow"], ["nightly"], ["nightly"]]
    assert [mark.name for case in nightly_but(["a", "b"], "a") for mark in case.marks] == ["nightly"]
    lists = short_only([None, ["x"], ["y"]], None, ["y"])
    assert [case.values for case in lists if not case.marks] == [(None,), (["y"],)]
