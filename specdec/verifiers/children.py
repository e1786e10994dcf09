"""The children of every node of a round's drafts, as tables. Built on the host without a loop over nodes.

Shape letters: B rows, C = G + 1 columns (0: the last committed token, g + 1: node g), N candidates of all rows, W the
most candidates under one column.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np

from specdec.core.round import Draft

Ints = np.ndarray  # int64


@dataclass(frozen=True, slots=True)
class Children:
    """Under each column its candidates in drawing order; a node that was drawn twice is there twice."""

    nodes_BCW: Ints  # -1: no candidate
    tests_BCW: Ints  # which of the row's test numbers is the candidate's own
    widths: list[int]  # the most candidates under a column, by depth from the last committed token on; the last is 0


def children_of(draft: Draft, repeats: bool = True) -> Children:
    """The candidates of ``draft.draws``, or each node once. Probes, which cannot be accepted, are left out.

    Args:
        repeats: a node is a candidate as often as it was drawn (False: once).
    """
    counts_B = np.array(draft.num_candidates, dtype=np.int64)
    parents_BG = padded_parents(draft)
    depths_BG = depths_of(parents_BG)
    if draft.draws is None or not repeats:
        sizes_B, nodes_N = counts_B, places(counts_B)
    else:
        sizes_B = np.array([len(row) for row in draft.draws], dtype=np.int64)
        nodes_N = np.fromiter(chain.from_iterable(draft.draws), np.int64)
    rows_N, tests_N = np.repeat(np.arange(len(counts_B)), sizes_B), places(sizes_B)
    proposed_N = nodes_N < counts_B[rows_N]
    rows_N, nodes_N, tests_N = rows_N[proposed_N], nodes_N[proposed_N], tests_N[proposed_N]
    columns_N = parents_BG[rows_N, nodes_N] + 1
    ranks_N = ranks(rows_N * (parents_BG.shape[1] + 1) + columns_N)
    shape = (len(counts_B), parents_BG.shape[1] + 1, int(ranks_N.max(initial=0)) + 1)
    nodes_BCW, tests_BCW = np.full(shape, -1), np.zeros(shape, np.int64)
    nodes_BCW[rows_N, columns_N, ranks_N] = nodes_N
    tests_BCW[rows_N, columns_N, ranks_N] = tests_N
    levels_N = depths_BG[rows_N, nodes_N] - 1
    widths = np.zeros(int(levels_N.max(initial=-1)) + 2, np.int64)
    np.maximum.at(widths, levels_N, ranks_N + 1)
    return Children(nodes_BCW, tests_BCW, widths.tolist())


def padded_parents(draft: Draft) -> Ints:
    """(B, G): each node's parent, -1 for the last committed token; -1 past a row's nodes."""
    width = draft.tokens_BG.shape[1]
    if draft.parents is None:
        return np.tile(np.arange(-1, width - 1), (len(draft.num_drafted), 1))
    sizes_B = np.array([len(row) for row in draft.parents], dtype=np.int64)
    parents_BG = np.full((len(sizes_B), width), -1)
    parents_BG[np.repeat(np.arange(len(sizes_B)), sizes_B), places(sizes_B)] = np.fromiter(
        chain.from_iterable(draft.parents), np.int64
    )
    return parents_BG


def depths_of(parents_BG: Ints) -> Ints:
    """(B, G): how many tokens of the draft each node's path has, itself included."""
    depths_BG = np.ones_like(parents_BG)
    above_BG = parents_BG
    while (above_BG >= 0).any():
        depths_BG += above_BG >= 0
        above_BG = np.where(above_BG >= 0, np.take_along_axis(parents_BG, above_BG.clip(0), 1), -1)
    return depths_BG


def places(sizes_B: Ints) -> Ints:
    """0, 1, ... for each row, one row after the other."""
    places_N: Ints = np.arange(sizes_B.sum()) - np.repeat(sizes_B.cumsum() - sizes_B, sizes_B)
    return places_N


def ranks(keys_N: Ints) -> Ints:
    """How many equal keys come before each."""
    order_N = keys_N.argsort(kind="stable")
    sorted_N = keys_N[order_N]
    ranks_N = np.empty_like(keys_N)
    ranks_N[order_N] = np.arange(len(keys_N)) - np.searchsorted(sorted_N, sorted_N)
    return ranks_N
