"""The trees of one round's rows while they grow: level by level, for all rows and nodes together.

A tree chooses children on the device; the host needs their parents, because it lays out the next forward. So there is
one wait for the device per level, and none where the shape is known beforehand (a chain, a fixed shape).
Shape letters: B rows, N nodes that are extended, C children of a level, J draws of a level, T children of all levels,
G drafted nodes, V vocabulary. Arrays with these letters are numpy's, on the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specdec.core.round import Draft
from specdec.core.sampling import penalized, seen_tokens, settings_of
from specdec.core.sequence import Sequence
from specdec.core.siblings import IID
from specdec.core.transfer import to_device
from specdec.trees.base import Children, Tree
from specdec.trees.frontier import Frontier, Workspace, by_place

Array = NDArray[Any]


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
    """

    def __init__(
        self,
        tree: Tree,
        rows: list[Sequence],
        gammas: list[int],
        num_missing: list[int],
        memory: Workspace | None = None,
    ) -> None:
        self._tree = tree
        self._memory = memory or Workspace()
        self._rows = rows
        self._settings = settings_of(rows)
        self._depths_B = np.minimum(gammas, tree.max_depth or max(gammas))
        self._num_fed_B = np.array(num_missing)
        self._extended = _Extended(np.minimum(gammas, 1), np.full((len(rows), 1), -1), self._num_fed_B - 1)
        self._state: dict[str, Tensor] = {}
        self._seen_BNV: Tensor | None = None
        self._levels: list[_Level] = []
        self._laws: list[tuple[Tensor, _Extended]] = []  # (B, N, V) of each depth at which children were drawn

    def add(self, logits_BNV: Tensor) -> Feed | None:
        """Choose the children of the nodes with these logits: at first of each row's last token (N = 1).

        Returns:
            The nodes to feed next; None when all trees are complete.
        """
        depth, extended = len(self._levels), self._extended
        real_BN = np.arange(logits_BNV.shape[1]) < extended.counts_B[:, None]
        scores_BNV, device = self._scores(logits_BNV), logits_BNV.device
        frontier = Frontier(
            depth, self._rows, self._settings, scores_BNV, to_device(real_BN, device), self._state, self._memory
        )
        children = self._tree.grow(frontier)
        if frontier.drawn_from is not None:
            self._laws.append((frontier.drawn_from, extended))
        places_BC, real_BC, extended_BC, draws_BJ, scores_BC = _on_host(
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
            probs_BGV = torch.cat([law for law, _ in self._laws], dim=1) if self._laws else None
            tokens_BG = torch.cat([level.tokens_BC for level in self._levels], dim=1)
            return Draft(tokens_BG, self._real().sum(1).tolist(), probs_BGV=probs_BGV)
        real_BT = self._real()
        nodes_BT = np.where(real_BT, real_BT.cumsum(1) - 1, -1)
        counts_B = real_BT.sum(1)
        order_BG = _first(real_BT, int(counts_B.max()))
        parents_BT = self._all("parents_BC")
        parents_BT = np.where(parents_BT < 0, -1, np.take_along_axis(nodes_BT, parents_BT.clip(min=0), 1))
        tokens_BT = torch.cat([level.tokens_BC for level in self._levels], dim=1)
        return Draft(
            by_place(tokens_BT, to_device(order_BG, tokens_BT.device)),
            counts_B.tolist(),
            _ragged(parents_BT, order_BG, counts_B),
            self._probs(nodes_BT, order_BG.shape[1]),
            self._draws(nodes_BT) if self._tree.siblings == IID else None,
        )

    def fed(self) -> list[list[int]]:
        """Per row and node of its draft: its number among all tokens fed to the draft model, or -1."""
        real_BT = self._real()
        counts_B = real_BT.sum(1)
        return _ragged(self._all("fed_BC"), _first(real_BT, int(counts_B.max())), counts_B)

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
        order_BN = _first(goes_on_BC, int(counts_B.max()))
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
        return real_BT & (order_BT.argsort(axis=1) < self._tree.num_kept)

    def _probs(self, nodes_BT: Array, num_nodes: int) -> Tensor | None:
        """(B, G, V): the distributions at the columns of the nodes that have children; anything at the others."""
        if not self._laws:
            return None
        first = self._laws[0][0]
        probs_BGV = self._memory.take(-1, (len(first), num_nodes, first.shape[-1]), first.device)
        for law_BNV, extended in self._laws:
            for b, count in enumerate(extended.counts_B.tolist()):
                if count:  # drawn trees extend all nodes of a depth, and so columns that follow each other
                    number = extended.children_BN[b, 0]
                    column = int(nodes_BT[b, number]) + 1 if number >= 0 else 0
                    probs_BGV[b, column : column + count] = law_BNV[b, :count]
        return probs_BGV

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


def spread(draft: Draft, places: list[int], num_rows: int) -> Draft:
    """A draft of some rows as one of all rows, in which the others draft nothing."""
    if len(places) == num_rows:
        return draft
    counts = dict(zip(places, draft.num_drafted, strict=True))
    at = to_device(places, draft.tokens_BG.device, torch.long)

    def lists(part: list[list[int]] | None) -> list[list[int]] | None:
        known = dict(zip(places, part or (), strict=False))
        return None if part is None else [known.get(b, []) for b in range(num_rows)]

    def whole(part: Tensor) -> Tensor:
        return part.new_zeros(num_rows, *part.shape[1:]).index_copy_(0, at, part)

    return Draft(
        whole(draft.tokens_BG),
        [counts.get(b, 0) for b in range(num_rows)],
        lists(draft.parents),
        None if draft.probs_BGV is None else whole(draft.probs_BGV),
        lists(draft.draws),
    )


def _on_host(*parts: Tensor | None) -> list[Array | None]:
    """Tensors (B, ...) as arrays; those on the device come together."""
    away = [part for part in parts if part is not None and part.device.type != "cpu"]
    fetched: list[Array] = []
    if away:
        whole = torch.cat([part.view(torch.int64) if part.is_floating_point() else part.long() for part in away], dim=1)
        fetched = np.split(whole.cpu().numpy(), np.cumsum([part.shape[1] for part in away])[:-1], axis=1)
    found: list[Array | None] = []
    for part in parts:
        if part is None or part.device.type == "cpu":
            found.append(None if part is None else part.numpy())
        else:
            array = fetched.pop(0)
            of_kind = {torch.bool: lambda a: a.astype(bool), torch.float64: lambda a: a.view(np.float64)}
            found.append(of_kind.get(part.dtype, lambda a: a)(array))
    return found


def _first(chosen_BT: Array, count: int) -> Array:
    """(B, count): each row's chosen places in order, then others."""
    return (~chosen_BT).argsort(axis=1, kind="stable")[:, :count]


def _ragged(values_BT: Array, order_BG: Array, counts_B: Array) -> list[list[int]]:
    """Each row's values at its first places, as lists."""
    rows = np.take_along_axis(values_BT, order_BG, 1).tolist()
    return [row[:count] for row, count in zip(rows, counts_B.tolist(), strict=True)]
