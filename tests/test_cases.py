"""The short form of a product of cases is smaller, and no two values are never seen together."""

from __future__ import annotations

from itertools import combinations, product

from cases import all_pairs


def test_all_pairs_meet_in_the_short_form_and_nothing_is_lost():
    axes = (["a", "b", "c", "d"], ["x", "y"], [(1, 5), (4, 5), (11, 3)], ["float32", "float64"])
    cases = all_pairs(*axes)
    flat = [(name, kind, *shape, dtype) for name, kind, shape, dtype in product(*axes)]
    assert [case.values for case in cases] == flat
    short = [case.values for case in cases if not case.marks]
    assert len(short) <= 14 < len(flat)
    met = {pair for name, kind, *shape, dtype in short for pair in combinations((name, kind, tuple(shape), dtype), 2)}
    assert met == {pair for case in product(*axes) for pair in combinations(case, 2)}
