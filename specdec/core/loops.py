"""Loops in greedy outputs: small models repeat themselves, and repetitions are easy to draft."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from specdec.core.metrics import ratio

LONGEST_PERIOD = 8
SHORTEST_LOOP = 12  # tokens; and at least three periods


def in_loops(tokens: Sequence[int]) -> list[bool]:
    """Which tokens stand in a loop: a stretch of 12 tokens or more that says at most 8 tokens three times or more."""
    found_N, tokens_N = np.zeros(len(tokens), dtype=bool), np.asarray(tokens)
    for period in range(1, LONGEST_PERIOD + 1):
        needed = max(SHORTEST_LOOP, 3 * period) - period
        repeats = np.concatenate([[False], tokens_N[period:] == tokens_N[:-period], [False]]).astype(np.int8)
        steps = np.diff(repeats)
        for start, end in zip(np.flatnonzero(steps == 1), np.flatnonzero(steps == -1), strict=True):
            if end - start >= needed:
                found_N[start : end + period] = True
    return [bool(one) for one in found_N]


def loop_figures(
    outputs: Mapping[int, Sequence[int]], steps: Iterable[tuple[int, int, int, int]]
) -> dict[str, float | None]:
    """The share of tokens that stand in loops, and accepted / drafted levels of steps that start in one, or do not.

    Args:
        outputs: of each row. steps: a row, how many tokens it had, and accepted and drafted levels.
    """
    loops = {row: in_loops(tokens) for row, tokens in outputs.items()}
    counts: dict[bool, Any] = {True: np.zeros(2, dtype=int), False: np.zeros(2, dtype=int)}
    for row, start, *levels in steps:
        counts[loops.get(row, [])[start : start + 1] == [True]] += levels
    return {
        "loop_share": ratio(sum(map(sum, loops.values())), sum(map(len, loops.values()))),
        "acceptance_in_loops": ratio(*counts[True].tolist()),
        "acceptance_outside_loops": ratio(*counts[False].tolist()),
    }
