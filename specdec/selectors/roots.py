"""The roots of a round, as the drafter hands them to a selector."""

from __future__ import annotations

from dataclasses import replace

from specdec.core.sampling_params import GREEDY
from specdec.selectors.base import Roots, RootStates
from specdec.trees.frontier import Frontier


def roots_of(frontier: Frontier, depths: list[int], states: RootStates | None = None) -> Roots:
    """What a selector sees of the rows of a frontier of depth 0."""
    rows = frontier.rows
    settings = frontier.settings or [GREEDY] * len(rows)
    return Roots(
        [row.index for row in rows],
        lambda b: rows[b].tokens(0),
        [row.length for row in rows],
        depths,
        [replace(of_row, seed=0) for of_row in settings],
        frontier.scores_BNV[:, 0],
        states,
    )
