"""Trees over ranked guesses: at every place ahead, the k-th most probable token of that place's own distribution.

Heads (medusa) and prompt tokens (ppd) guess every place at once, without seeing which tokens were guessed before it. A
node is therefore a path of ranks, and a tree is the same for all rows. ``accuracies[i][k]`` is the measured probability
that the true token i places ahead is the k-th guess; the product along a path is taken as the node's probability. The N
most probable nodes form a tree, because no node is more probable than its parent; no other tree of N nodes has a larger
sum of probabilities, which is the expected number of accepted tokens.
Source: Cai et al. 2024, arXiv 2401.10774, section 2.3.3 (Medusa); Chen et al. 2024, arXiv 2405.18628 (PPD).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from specdec.errors import ConfigError
from specdec.trees.shape import best_shape

NUM_RANKS = 10  # guesses per place
ACCURACIES = "accuracies"  # key of a trained folder's config.json

Accuracies = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class RankedTree:
    """Nodes from the most probable on, without the root (the last committed token)."""

    parents: list[int]  # -1: the root
    places: list[int]  # which place ahead, from 0
    ranks: list[int]  # which guess of that place, from 0
    probs: list[float]  # that the whole path down to the node is right

    @property
    def num_nodes(self) -> int:
        """Nodes without the root."""
        return len(self.parents)

    @property
    def num_expected(self) -> float:
        """Expected accepted tokens of a round."""
        return sum(self.probs)

    def first(self, num_nodes: int) -> RankedTree:
        """The tree of its most probable nodes."""
        cut = slice(num_nodes)
        return RankedTree(self.parents[cut], self.places[cut], self.ranks[cut], self.probs[cut])

    def ends(self) -> list[float]:
        """The probability that the accepted path ends at the root, and at each node."""
        ends = [1.0, *self.probs]
        for parent, prob in zip(self.parents, self.probs, strict=True):
            ends[parent + 1] -= prob
        return ends


def most_probable(accuracies: Accuracies, num_nodes: int) -> RankedTree:
    """The ``num_nodes`` most probable nodes, at most ``len(accuracies)`` deep, without guesses that are never right."""
    shape = best_shape(accuracies, num_nodes)
    places: list[int] = []
    probs: list[float] = []
    for parent, rank in zip(shape.parents, shape.ranks, strict=True):
        place, above = (places[parent] + 1, probs[parent]) if parent >= 0 else (0, 1.0)
        places.append(place)
        probs.append(above * accuracies[place][rank])
    return RankedTree(shape.parents, places, shape.ranks, probs)


def read_accuracies(settings: dict[str, Any], num_places: int) -> list[list[float]]:
    """The measured accuracies of a trained folder's settings; without them, the assumed ones.

    Raises:
        ConfigError: they are no probabilities of ``num_places`` places.
    """
    found = settings.get(ACCURACIES)
    if found is None:
        return assumed_accuracies(num_places)
    try:
        table = [[float(value) for value in row] for row in found]
    except (TypeError, ValueError):
        table = []
    if len(table) != num_places or len({len(row) for row in table}) != 1 or not table[0]:
        raise ConfigError(f"drafter.path: {ACCURACIES} in its config.json must be {num_places} lists of equal length")
    if any(value < 0 for row in table for value in row) or any(sum(row) > 1 + 1e-6 for row in table):
        raise ConfigError(f"drafter.path: {ACCURACIES} in its config.json must be probabilities")
    return table


def assumed_accuracies(num_places: int) -> list[list[float]]:
    """What is assumed where nothing was measured: 0.5 for the first guess of the first place, 0.8 of that for every
    further place, and for every further guess 0.4 of the guess before it."""
    return [[0.5 * 0.8**place * 0.4**rank for rank in range(NUM_RANKS)] for place in range(num_places)]
