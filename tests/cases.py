"""Large products of cases: the tests take every pair of values, and every combination at night."""

from __future__ import annotations

from collections.abc import Sequence
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
    return [part for value in chosen for part in (value if isinstance(value, tuple) else (value,))]
