"""Losslessness of the verifiers of trees by exact enumeration, and the wrong rules that it must reject."""

from __future__ import annotations

import pytest
from enumeration import Laws
from tree_laws import independent, judge, without_replacement

from specdec.core.siblings import IID, WITHOUT_REPLACEMENT
from specdec.registry import create, lookup, names

EXACT = 1e-12
# Vocabulary, depth, and the shape of the draft.
PATHS = [
    (3, 2, (0, 2, 2)),
    (2, 3, (0, 3, 3)),
    (3, 3, (1, 2, 2)),
    (4, 2, (0, 2, 2)),
    (2, 3, (1, 3, 2)),
    (3, 2, (0, 3, 2)),
]
ORDERED = [(3, 2, (2, 2)), (2, 3, (2, 2, 1)), (4, 2, (2, 1)), (3, 3, (1, 3, 1)), (4, 1, (3,)), (3, 3, (2, 1, 1))]


def laws_of(seed: int, vocab: int, length: int) -> Laws:
    """Flat and peaky ones, a third with zeros."""
    return Laws.random(seed, vocab, length, (1.0, 0.4)[seed % 2], seed % 3 == 2)


def verifiers(kind: str) -> list[str]:
    """Those that judge such siblings and are lossless."""
    entries = [lookup("verifier", name) for name in names("verifier")]
    return [
        e.name for e in entries if e.samples and not e.lossy and kind in e.judges and not e.name.startswith("test_")
    ]


@pytest.mark.parametrize("seed", range(42))
@pytest.mark.parametrize("name", verifiers(IID))
def test_independent_paths_leave_the_targets_law(name, seed):
    vocab, length, shape = PATHS[seed % len(PATHS)]
    laws = laws_of(seed, vocab, length)
    result = judge(create("verifier", name), laws, independent(laws, *shape))
    assert result.mass == pytest.approx(1, abs=EXACT)
    assert result.distance < EXACT


@pytest.mark.parametrize("seed", range(42))
@pytest.mark.parametrize("name", verifiers(WITHOUT_REPLACEMENT))
def test_siblings_without_replacement_leave_the_targets_law(name, seed):
    vocab, length, widths = ORDERED[seed % len(ORDERED)]
    laws = laws_of(seed, vocab, length)
    result = judge(create("verifier", name), laws, without_replacement(laws, widths))
    assert result.mass == pytest.approx(1, abs=EXACT)
    assert result.distance < EXACT
