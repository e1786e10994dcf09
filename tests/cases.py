"""Large products of cases: CI takes every pair of values, the short tests a few, and every night every combination."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations, product
from typing import Any

import pytest


def all_pairs(*axes: Sequence[Any]) -> list[Any]:
    """Parameters of every combination of one value per axis; a value that is a tuple stands for several parameters.

    Combinations are taken greedily until any two values of different axes have met; the others run every night.
    """
    everything = list(product(*(range(len(axis)) for axis in axes)))
    met = {combination: set(combinations(enumerate(combination), 2)) for combination in everything}
    missing, short = set().union(*met.values()), set()
    while missing:
        best = max(everything, key=lambda combination: len(met[combination] & missing))
        short.add(best)
        missing -= met[best]
    return [
        pytest.param(*_values(axes, combination), marks=() if combination in short else pytest.mark.nightly)
        for combination in everything
    ]


def _values(axes: Sequence[Sequence[Any]], combination: tuple[int, ...]) -> list[Any]:
    chosen = [axis[place] for axis, place in zip(axes, combination, strict=True)]
    return [part for value in chosen for part in _parts(value)]


def each_value(*axes: Sequence[Any]) -> list[Any]:
    """As `all_pairs`, but only as many cases are short as show every value once; the other pairs run at night."""
    cases = all_pairs(*axes)
    places = list(product(*(range(len(axis)) for axis in axes)))
    left = [number for number, case in enumerate(cases) if not case.marks]
    missing, short = {place for number in left for place in enumerate(places[number])}, []
    while missing:
        short.append(max(left, key=lambda number: len(missing & set(enumerate(places[number])))))
        missing -= set(enumerate(places[short[-1]]))
    return [
        pytest.param(*case.values, marks=pytest.mark.nightly) if number in left and number not in short else case
        for number, case in enumerate(cases)
    ]


def short_only(cases: Iterable[Any], *short: Any, ci: Sequence[Any] | None = None) -> list[Any]:
    """Parameters of which only those named are short, by all values or the first one.

    CI takes the others too, or of them those that ``ci`` names in the same way; the rest then runs every night.
    """
    found = []
    for case in cases:
        case = case if hasattr(case, "marks") else pytest.param(*_parts(case))
        is_long = {mark.name for mark in case.marks} & {"slow", "nightly"}
        if is_long or _named(case.values, short):
            marks = case.marks
        else:
            in_ci = ci is None or _named(case.values, tuple(ci))
            marks = (*case.marks, pytest.mark.slow if in_ci else pytest.mark.nightly)
        found.append(pytest.param(*case.values, marks=marks, id=case.id))
    return found


def nightly_but(cases: Iterable[Any], *kept: Any) -> list[Any]:
    """Parameters of which all but those named run at night only; these are as long as the rest of the test says."""
    return short_only(cases, *kept, ci=())


def _named(values: tuple[Any, ...], names: tuple[Any, ...]) -> bool:
    return values[0] in names or (len(values) > 1 and values in names)


def _parts(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
