"""The trees of one round's rows while they grow: level by level, for all rows and nodes together.

A tree chooses children on the device; the host needs their parents, because it lays out the next forward. So there is
one wait for the device per level, and none where the shape is known beforehand (a chain, a fixed shape).
Shape letters: B rows, N nodes that are extended, C children of a level, J draws of a level, T children of all levels,
G drafted nodes, V vocabulary. Arrays with these letters are numpy's, on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from specdec.core.round import Draft
from specdec.core.sampling import penalized, seen_tokens, settings_of
from specdec.core.sequence import Sequence
from specdec.core.siblings import IID
from specdec.core.transfer import to_device
from specdec.errors import ContractError
from specdec.trees.arrays import Array, first_places, on_host, ragged
from specdec.trees.base import Children, RowShape, Tree
from specdec.trees.frontier import Frontier, Workspace, by_place

Choose = Callable[[Frontier], list[RowShape]]
"""Decides the rows' shapes by their roots, before any node is drawn."""


@dataclass(frozen=True, slots=True)
class Feed:
    """The nodes that the draft model is fed next."""

    tokens_BN: Tensor
    counts: list[int]  # per row; places after them hold nothing
    parents: list[list[int]] | None  # as `Alignment.forward` counts them; None: every row is a chain
    places_BN: Tensor  # each node's parent, among the nodes of the forward before


@dataclass(frozen=True, slots=True)
class _Extended:
    """The nodes that were fed last, whose children are chosen next."""

    counts_B: Array
    children_BN: Array  # their numbers among all children; -1 is the last committed token
    first_fed_B: Array  # the number of the first of them among all tokens fed


@dataclass(frozen=True, slots=True)
class _Level:
    """The children of one depth."""

    tokens_BC: Tensor
    real_BC: Array  # bool: those that are in the row's tree
    parents_BC: Array  # numbers among all children; -1: the last committed token
    fed_BC: Array  # numbers among all tokens fed; -1: not fed
    scores_BC: Array | None
    draws_BJ: Array | None


class Growth:
    """Call ``add`` with the logits after the nodes fed, until it returns None; then take ``draft()``.

    Args:
        gammas: the depth of each row's tree; 0: none.
        num_missing: tokens of each row that are fed in the first forward, before all nodes.
        memory: what the draft's distributions are in, until the next draft in the same memory.
        choose: called once, with the frontier of depth 0; None: all rows have the tree's own shape.
        certainty: report ``Draft.certainty_BG2``.
    """

    def __init__(
        self,
        tree: Tree,
        rows: list[Sequence],
        gammas: list[int],
        num_missing: list[int],
        memory: Workspace | None = None,
        choose: Choose | None = None,
        certainty: bool = False,
    ) -> None:
        self._tree = tree
        self._choose = choose
        self._shapes: list[RowShape] | None = None
        self._memory = memory or Workspace()
        self._rows = rows
        self._settings = settings_of(rows)
        self._depths_B = np.minimum(gammas, tree.max_depth or max(gammas))
        self._num_fed_B = np.array(num_missing)
        self._extended = _Extended(np.minimum(gammas, 1), np.full((len(rows), 1), -1), self._num_fed_B - 1)
        self._state: dict[str, Tensor] = {}
        self._seen_BNV: Tensor | None = None
        self._levels: list[_Level] = []
        self._probs_BGV: Tensor | None = None  # what children were drawn from, at the columns of their parents
        self._certainties: list[tuple[Tensor, _Extended]] | None = [] if certainty else None  # (B, N, 2) of each depth

    def add(self, logits_BNV: Tensor) -> Feed | None:
        """Choose the children of the nodes with these logits: at first of each row's last token (N = 1).

        Returns:
            The nodes to feed next; None when all trees are complete.
        """
        depth, extended = len(self._levels), self._extended
        real_BN = np.arange(logits_BNV.shape[1]) < extended.counts_B[:, None]
        scores_BNV, device = self._scores(logits_BNV), logits_BNV.device
        frontier = Frontier(
            *(depth, self._rows, self._settings, scores_BNV, to_device(real_BN, device), self._state, self._memory)
        )
        if depth == 0 and self._choose is not None:
            self._shapes = self._choose(frontier)
            self._depths_B = np.minimum(self._depths_B, [shape.depth for shape in self._shapes])
            extended = self._extended = replace(extended, counts_B=np.minimum(self._depths_B, 1))
        frontier.shapes = self._shapes
        frontier.place = lambda: self._place(scores_BNV, extended)
        children = self._tree.grow(frontier)
        if self._certainties is not None:
            self._certainties.append((certainty_of(scores_BNV), extended))
        if frontier.drawn_from is not None:
            self._keep(frontier.drawn_from, extended)
        places_BC, real_BC, extended_BC, draws_BJ, scores_BC = on_host(
            *(children.parents_BC, children.real_BC, children.extended_BC, children.draws_BJ, children.scores_BC)
        )
        assert places_BC is not None
        assert real_BC is not None
        real_BC = real_BC & (places_BC < extended.counts_B[:, None]) & (self._depths_B > depth)[:, None]
        goes_on_BC = real_BC & (self._depths_B > depth + 1)[:, None]
        if extended_BC is not None:
            goes_on_BC &= extended_BC
        parents_BC = np.take_along_axis(extended.children_BN, places_BC, 1)
        fed_BC = np.where(goes_on_BC, self._num_fed_B[:, None] + goes_on_BC.cumsum(1) - 1, -1)
        level = _Level(children.tokens_BC, real_BC, parents_BC, fed_BC, scores_BC, draws_BJ)
        self._levels.append(level)
        return self._feed(children, places_BC, goes_on_BC) if goes_on_BC.any() else None

    def draft(self) -> Draft:
        """The drafts of all rows."""
        if all(level.real_BC.shape[1] == 1 for level in self._levels):
            tokens_BG = torch.cat([level.tokens_BC for level in self._levels], dim=1)
            probs_BGV = self._probs(tokens_BG.shape[1])
            certainty_BG2 = torch.cat([part for part, _ in self._certainties], dim=1) if self._certainties else None
            return Draft(tokens_BG, self._real().sum(1).tolist(), probs_BGV=probs_BGV, certainty_BG2=certainty_BG2)
        real_BT = self._real()
        nodes_BT = np.where(real_BT, real_BT.cumsum(1) - 1, -1)
        counts_B = real_BT.sum(1)
        order_BG = first_places(real_BT, int(counts_B.max()))
        among_all_BT = self._all("parents_BC")
        parents_BT = np.where(among_all_BT < 0, -1, np.take_along_axis(nodes_BT, among_all_BT.clip(min=0), 1))
        if bool((real_BT & (among_all_BT >= 0) & (parents_BT < 0)).any()):
            raise ContractError("the tree keeps a node without its parent: scores must not grow along a path")
        tokens_BT = torch.cat([level.tokens_BC for level in self._levels], dim=1)
        return Draft(
            by_place(tokens_BT, to_device(order_BG, tokens_BT.device)),
            counts_B.tolist(),
            ragged(parents_BT, order_BG, counts_B),
            self._probs(order_BG.shape[1]),
            self._draws(nodes_BT) if self._tree.siblings == IID else None,
            certainty_BG2=self._certainty(nodes_BT, order_BG.shape[1]),
        )

    def fed(self) -> list[list[int]]:
        """Per row and node of its draft: its number among all tokens fed to the draft model, or -1."""
        real_BT = self._real()
        counts_B = real_BT.sum(1)
        return ragged(self._all("fed_BC"), first_places(real_BT, int(counts_B.max())), counts_B)

    def _scores(self, logits_BNV: Tensor) -> Tensor:
        """Penalised scores; logits as they are if all rows take the model's plain argmax."""
        if self._settings is None:
            return logits_BNV
        if not self._levels:
            self._seen_BNV = seen_tokens(self._rows, None, logits_BNV)
        return penalized(logits_BNV, self._settings, self._seen_BNV)

    def _feed(self, children: Children, places_BC: Array, goes_on_BC: Array) -> Feed:
        """Move the children that are extended to the front, and continue from them."""
        device, counts_B = children.tokens_BC.device, goes_on_BC.sum(1)
        order_BN = first_places(goes_on_BC, int(counts_B.max()))
        first_B, numbers_BN = (
            self._extended.first_fed_B,
            order_BN + sum(level.real_BC.shape[1] for level in self._levels[:-1]),
        )
        self._extended = _Extended(counts_B, numbers_BN, self._num_fed_B)
        self._num_fed_B = self._num_fed_B + counts_B
        places_BN = np.take_along_axis(places_BC, order_BN, 1)
        at_BN, parents_BN = to_device(order_BN, device), to_device(places_BN, device)
        tokens_BN = by_place(children.tokens_BC, at_BN) if goes_on_BC.shape[1] > 1 else children.tokens_BC
        self._state = {name: by_place(value, at_BN) for name, value in children.state.items()}
        if self._seen_BNV is not None:
            self._seen_BNV = by_place(self._seen_BNV, parents_BN).scatter(-1, tokens_BN[..., None], True)
        counts: list[int] = counts_B.tolist()
        parents = None
        if any(level.real_BC.shape[1] > 1 for level in self._levels):
            fed_BN = first_B[:, None] + places_BN
            parents = [row[:count] for row, count in zip(fed_BN.tolist(), counts, strict=True)]
        return Feed(tokens_BN, counts, parents, parents_BN)

    def _all(self, name: str) -> Array:
        """(B, T): a field of all levels."""
        return np.concatenate([getattr(level, name) for level in self._levels], axis=1)

    def _real(self) -> Array:
        """(B, T) bool: the children that are in the drafts."""
        real_BT = self._all("real_BC")
        if self._tree.num_kept is None:
            return real_BT
        # A child that is no better than its parent comes after it, in the order of the levels.
        order_BT = np.where(real_BT, -self._all("scores_BC"), np.inf).argsort(axis=1, kind="stable")
        kept = self._tree.num_kept if self._shapes is None else [[shape.width] for shape in self._shapes]
        return real_BT & (order_BT.argsort(axis=1) < kept)

    def _place(self, scores_BNV: Tensor, extended: _Extended) -> Tensor | None:
        """Where a level's distributions are kept, if that is at the same columns in all rows; on a GPU a copy is cheap.

        Drawn trees extend all nodes of a depth and drop none: a row's columns follow each other, and are known.
        """
        first_B, width = self._columns(), scores_BNV.shape[1]
        probs_BGV = self._reserved(scores_BNV)
        last = first_B[0] + width
        in_one = scores_BNV.device.type == "cpu" and (first_B == first_B[0]).all() and last <= probs_BGV.shape[1]
        return probs_BGV[:, first_B[0] : last] if in_one else None

    def _columns(self) -> Array:
        """(B): the column of the first of a level's nodes, which have been extended last."""
        first_B: Array = sum((level.real_BC.sum(1) for level in self._levels[:-1]), np.zeros(len(self._rows), int))
        return first_B + int(bool(self._levels))

    def _reserved(self, scores_BNV: Tensor) -> Tensor:
        """(B, G, V): for all nodes that may have children."""
        if self._probs_BGV is None:
            tree = self._tree if self._shapes is None else self._tree.largest()
            num_nodes = tree.num_nodes(int(self._depths_B.max()))
            shape = (len(scores_BNV), max(num_nodes, 1), scores_BNV.shape[-1])
            self._probs_BGV = self._memory.take(1, shape, scores_BNV.device)
        return self._probs_BGV

    def _keep(self, law_BNV: Tensor, extended: _Extended) -> None:
        """Copy a level's distributions to the columns of their nodes, where they are not there already."""
        probs_BGV = self._reserved(law_BNV)
        first_B = self._columns()
        if law_BNV.data_ptr() == probs_BGV[:, first_B[0] :].data_ptr():
            return
        for b, (first, count) in enumerate(zip(first_B.tolist(), extended.counts_B.tolist(), strict=True)):
            if count:
                probs_BGV[b, first : first + count] = law_BNV[b, :count]

    def _probs(self, num_nodes: int) -> Tensor | None:
        """(B, G, V): the distributions at the columns of the nodes that have children; anything at the others."""
        return None if self._probs_BGV is None else self._probs_BGV[:, :num_nodes]

    def _certainty(self, nodes_BT: Array, num_nodes: int) -> Tensor | None:
        """(B, G, 2): the certainties at the columns of the nodes that were extended; 0 at the others."""
        if self._certainties is None:
            return None
        first = self._certainties[0][0]
        found_BG2 = first.new_zeros(len(first), num_nodes, 2)
        for part_BN2, extended in self._certainties:
            children_BN = extended.children_BN
            nodes_BN = np.where(children_BN < 0, -1, np.take_along_axis(nodes_BT, children_BN.clip(min=0), 1))
            real_BN = np.arange(children_BN.shape[1]) < extended.counts_B[:, None]
            real_BN &= (nodes_BN >= 0) | (children_BN < 0)
            rows_M, places_M = np.nonzero(real_BN & (nodes_BN + 1 < num_nodes))
            at_3M = to_device(np.stack([rows_M, places_M, nodes_BN[rows_M, places_M] + 1]), first.device)
            found_BG2[at_3M[0], at_3M[2]] = part_BN2[at_3M[0], at_3M[1]]
        return found_BG2

    def _draws(self, nodes_BT: Array) -> list[list[int]]:
        """Per row the nodes as they were drawn, repeats included."""
        parts, start = [], 0
        for level in self._levels:
            num_children = level.real_BC.shape[1]
            nodes_BC = nodes_BT[:, start : start + num_children]
            start += num_children
            if level.draws_BJ is None:
                parts.append(nodes_BC)
            else:
                drawn_BJ = np.take_along_axis(nodes_BC, level.draws_BJ.clip(min=0), 1)
                parts.append(np.where(level.draws_BJ < 0, -1, drawn_BJ))
        return [[node for node in row if node >= 0] for row in np.concatenate(parts, axis=1).tolist()]


def certainty_of(scores_BNV: Tensor) -> Tensor:
    """(B, N, 2) float32: the largest probability of the softmax of some scores, and its entropy in nats."""
    scores_BNV = scores_BNV.float().clamp(min=torch.finfo(torch.float32).min)  # 0 x -inf would be NaN
    probs_BNV, highest_BN = scores_BNV.softmax(-1), scores_BNV.amax(-1)
    top_BN = probs_BNV.amax(-1)
    log_total_BN = highest_BN - top_BN.log()
    return torch.stack([top_BN, log_total_BN - torch.linalg.vecdot(probs_BNV, scores_BNV)], dim=-1)
