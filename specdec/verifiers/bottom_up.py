"""The order in which a tree is judged from its leaves. Built on the host without a loop over nodes.

Nodes are named by their columns (node g is column g + 1); column C, one past the last, stands for none. Positions
follow from the sizes of subtrees, one depth at a time. Shape letters: B rows, G nodes, C columns, X = C + 1, S steps,
L levels that are entered before one step, W the most children of a node, N nodes of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from specdec.core.round import Draft
from specdec.verifiers.children import Children, Ints, children_of, depths_of, padded_parents, places, ranks


@dataclass(frozen=True, slots=True)
class BottomUp:
    """Depth first, siblings in drawing order, every node after its own subtree."""

    leave_SB: Ints  # the node that is judged in step s
    enter_SLB: Ints  # the nodes whose subtrees begin with step s, from the top down
    parents_BX: Ints
    depths_BX: Ints
    children_BXW: Ints  # empty places hold the first child once more, so that writing to all places does no harm
    is_child_BXW: np.ndarray
    slots_BX: Ints  # the place of each column among those of its row that have children
    fresh: list[tuple[Ints, Ints]]  # by step: rows and columns whose first children are entered then


def bottom_up(draft: Draft) -> BottomUp:
    """The order of each row's tree, and its tables. Every node is one child, however often it was drawn."""
    children, parents_BG = children_of(draft, repeats=False), padded_parents(draft)
    depths_BG, none = depths_of(parents_BG), parents_BG.shape[1] + 1
    leave_SB, enter_SLB = _steps(draft, children, parents_BG, depths_BG)
    is_child_BCW = children.nodes_BCW >= 0
    is_inner_BC = is_child_BCW[:, :, 0]
    slots_BC = (is_inner_BC.cumsum(1) - 1).clip(0)
    one_more = ((0, 0), (0, 1), (0, 0))
    filled_BCW = np.where(is_child_BCW, children.nodes_BCW, children.nodes_BCW[:, :, :1])
    parents_BX = np.pad(parents_BG + 1, ((0, 0), (1, 1)), constant_values=none)
    children_BXW = np.pad(np.where(filled_BCW >= 0, filled_BCW + 1, none), one_more, constant_values=none)
    steps_N, levels_N, rows_N = np.nonzero(enter_SLB != none)
    columns_N = parents_BX[rows_N, enter_SLB[steps_N, levels_N, rows_N]]
    first_N = children_BXW[rows_N, columns_N, 0] == enter_SLB[steps_N, levels_N, rows_N]
    rows_N, columns_N, cuts_S = (
        rows_N[first_N],
        columns_N[first_N],
        np.cumsum(np.bincount(steps_N[first_N], minlength=len(leave_SB))),
    )
    return BottomUp(
        leave_SB,
        enter_SLB,
        parents_BX,
        np.pad(depths_BG, ((0, 0), (1, 1))),
        children_BXW,
        np.pad(is_child_BCW, one_more),
        np.pad(slots_BC, ((0, 0), (0, 1))),
        list(zip(np.split(rows_N, cuts_S[:-1]), np.split(columns_N, cuts_S[:-1]), strict=True)),
    )


def _steps(draft: Draft, children: Children, parents_BG: Ints, depths_BG: Ints) -> tuple[Ints, Ints]:
    """``leave_SB`` and ``enter_SLB``."""
    counts_B, (num_rows, width) = np.array(draft.num_candidates, dtype=np.int64), parents_BG.shape
    rows_N, nodes_N = np.repeat(np.arange(num_rows), counts_B), places(counts_B)
    parents_N, depths_N = parents_BG[rows_N, nodes_N], depths_BG[rows_N, nodes_N]
    levels = [np.flatnonzero(depths_N == depth) for depth in range(1, int(depths_N.max(initial=0)) + 1)]
    sizes_BC = np.ones((num_rows, width + 1), np.int64)  # nodes of the subtree below a column, its own included
    for level in reversed(levels):
        np.add.at(sizes_BC, (rows_N[level], parents_N[level] + 1), sizes_BC[rows_N[level], nodes_N[level] + 1])
    held = np.nonzero(children.nodes_BCW >= 0)
    sizes_BCW = np.zeros_like(children.nodes_BCW)
    sizes_BCW[held] = sizes_BC[held[0], children.nodes_BCW[held] + 1]
    before_BG = np.zeros((num_rows, width), np.int64)  # nodes in the subtrees of earlier siblings
    before_BG[held[0], children.nodes_BCW[held]] = (sizes_BCW.cumsum(2) - sizes_BCW)[held]
    starts_BC = np.zeros((num_rows, width + 1), np.int64)  # the step with which a subtree begins
    for level in levels:
        rows, nodes = rows_N[level], nodes_N[level]
        starts_BC[rows, nodes + 1] = starts_BC[rows, parents_N[level] + 1] + before_BG[rows, nodes]
    starts_N = starts_BC[rows_N, nodes_N + 1]
    leave_SB = np.full((int(counts_B.max(initial=0)), num_rows), width + 1)
    leave_SB[starts_N + sizes_BC[rows_N, nodes_N + 1] - 1, rows_N] = nodes_N + 1
    order_N = depths_N.argsort(kind="stable")
    levels_N = np.empty_like(nodes_N)  # nodes that begin with the same step lie on one path, so depth orders them
    levels_N[order_N] = ranks((rows_N * (width + 1) + starts_N)[order_N])
    enter_SLB = np.full((len(leave_SB), int(levels_N.max(initial=-1)) + 1, num_rows), width + 1)
    enter_SLB[starts_N, levels_N, rows_N] = nodes_N + 1
    return leave_SB, enter_SLB
