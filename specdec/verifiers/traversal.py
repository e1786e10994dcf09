"""Traversal verification: a tree is judged from its leaves, so that a parent stays usable after its children failed.

Rule, with p, q and w of each node m as its own copies, w(root) = 1 and w(x) = min(1, w(m) p(x | m) / q(x | m)) for its
child x: the first leaf in depth-first order (siblings in drawing order) is accepted with probability w, and then the
next token is drawn from the leaf's p. Otherwise the leaf x is deleted, and at its parent m
    p <- norm((w p - q)+),   w <- s / (s + 1 - w) with s = sum (w p - q)+ and the old w,   q <- norm(q without x);
the weights of the remaining descendants of m follow, those of its ancestors stay. Siblings must be an ordered sample
without replacement; independent draws are, once repeats are merged in order of first appearance. So is a stochastic
beam: averaged over what is drawn below it, something in the subtree of x is accepted with probability w(x), whichever
of its nodes were kept and why, as long as no node's own token had a say in it. So that x's subtree failed says nothing
about x's siblings, though the values of their children decided what was kept of it. With one child per node it is block
verification.
Source: Weng et al. 2025, arXiv 2505.12398.

No copies are kept. With w0 the weight of m when it was entered, w p stays (w0 p - c q)+ / (T + 1 - w0) and w stays
T / (T + 1 - w0), where T = sum (w0 p - c q)+, except that what a deleted child has left is frozen; each deletion raises
c by (T + 1 - w0) / (mass of q not yet deleted). So a deletion costs one pass over the vocabulary, and all else is a few
numbers per node. Shape letters: B rows, R rows still judged, C columns, G nodes, W siblings, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from specdec.core.round import Draft, Verdict
from specdec.core.sampling import Noise
from specdec.core.siblings import BEAM, CHAIN, IID, WITHOUT_REPLACEMENT
from specdec.core.target_law import TargetLaw
from specdec.core.transfer import to_device
from specdec.verifiers import decisions
from specdec.verifiers.base import LawVerifier
from specdec.verifiers.bottom_up import bottom_up
from specdec.verifiers.children import Ints
from specdec.verifiers.walk import draft_law


class TraversalVerifier(LawVerifier):
    """Lossless; with one path it is block."""

    judges = (CHAIN, IID, WITHOUT_REPLACEMENT, BEAM)

    def verify_law(self, draft: Draft, law: TargetLaw, noise: Noise) -> Verdict:
        trees = Trees(draft, law)
        rows_B = torch.arange(len(draft.num_drafted), device=draft.tokens_BG.device)
        tests_BX = torch.nn.functional.pad(noise.tests_BG[:, : draft.tokens_BG.shape[1]], (1, 1))
        ends_B, open_B = torch.zeros_like(rows_B), torch.ones_like(rows_B, dtype=torch.bool)
        for step, leaves_B in enumerate(trees.leave_SB):
            judged_B = open_B & (leaves_B != trees.nowhere)
            # On a GPU, asking which rows are still judged would wait longer than judging all takes.
            rows_R = judged_B.nonzero()[:, 0] if trees.on_host else rows_B
            if len(rows_R) == 0:
                break
            trees.enter(step, rows_R)
            leaves_R = leaves_B[rows_R]
            passed_R = decisions.passes(judged_B[rows_R], tests_BX[rows_R, leaves_R], trees.weight(rows_R, leaves_R))
            ends_B[rows_R] = torch.where(passed_R, leaves_R, ends_B[rows_R])
            open_B[rows_R] = open_B[rows_R] & ~passed_R
            failed = ~passed_R if trees.on_host else slice(None)
            trees.delete(rows_R[failed], leaves_R[failed])
        draws_B = noise.draws_BT[rows_B, trees.depths_BX[rows_B, ends_B]]
        next_B = decisions.draws(rows_B >= 0, trees.next_weights(rows_B, ends_B), draws_B, ends_B)
        decided = draft.fetch(torch.stack([ends_B, next_B], dim=1))
        return Verdict([draft.path(b, end - 1) for b, (end, _) in enumerate(decided)], [token for _, token in decided])


class Trees:
    """What is left of p, q and w at every column of all rows; column ``nowhere`` takes what concerns no node."""

    def __init__(self, draft: Draft, law: TargetLaw) -> None:
        order, device = bottom_up(draft), draft.tokens_BG.device
        self._draft, self._law = draft, law
        self.nowhere = order.parents_BX.shape[1] - 1
        self.on_host = device.type == "cpu"
        self._num_levels = (order.enter_SLB != self.nowhere).any(2).sum(1).tolist()
        self.leave_SB, self._enter_SLB = to_device(order.leave_SB, device), to_device(order.enter_SLB, device)
        self.depths_BX = to_device(order.depths_BX, device)
        self._parents_BX, self._slots_BX = to_device(order.parents_BX, device), to_device(order.slots_BX, device)
        self._children_BXW = to_device(order.children_BXW, device)
        self._is_child_BXW = to_device(order.is_child_BXW, device)
        self._tokens_BX = torch.nn.functional.pad(draft.tokens_BG, (1, 1)).clamp(max=law.vocab_size - 1)
        self._fresh, size = order.fresh, (len(order.parents_BX), int(order.slots_BX.max(initial=0)) + 1, law.vocab_size)
        self._p_BIV = torch.empty(size, dtype=torch.float64, device=device)  # of columns with children, once looked at
        self._p_BX = torch.zeros(order.parents_BX.shape, dtype=torch.float64, device=device)
        self._q_BX = torch.ones_like(self._p_BX)
        rows_B1 = torch.arange(len(order.parents_BX), device=device)[:, None]
        if draft.probs_BGV is not None and draft.probs_BGV.shape[1]:
            columns_BX = self._parents_BX.clamp(max=draft.probs_BGV.shape[1] - 1)
            self._q_BX = draft.probs_BGV[rows_B1, columns_BX, self._tokens_BX].double()
        # Of each column: w0, c, T, and the mass of q that is not deleted. Of each node: c when it was deleted.
        start_4 = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
        self._left_BX4 = to_device(start_4.expand(*order.parents_BX.shape, 4).contiguous(), device)
        self._frozen_BX = torch.full_like(self._p_BX, -1.0)
        if self._fresh and not self.on_host:
            self._look(*(np.concatenate(part) for part in zip(*self._fresh, strict=True)))

    def weight(self, rows_R: Tensor, nodes_R: Tensor) -> Tensor:
        """(R): w. 0 / 0 is 1: p = q there, and what has w = 1 is accepted for certain."""
        w0_R, _, mass_R, _ = self._left_BX4[rows_R, nodes_R].unbind(1)
        total_R = mass_R + 1 - w0_R
        return torch.where(total_R > 0, mass_R / total_R, 1.0)

    def enter(self, step: int, rows_R: Tensor) -> None:
        """Go down to the next leaves."""
        if self.on_host:
            rows, columns = self._fresh[step]
            judged = np.isin(rows, rows_R.numpy())
            self._look(rows[judged], columns[judged])
        for entered_B in self._enter_SLB[step, : self._num_levels[step]]:
            self._weigh(rows_R, entered_B[rows_R])

    def _look(self, rows: Ints, columns: Ints) -> None:
        """Ask for the target's distributions at columns with children; on a CPU only when they are needed."""
        if len(rows) == 0:
            return
        rows_N, columns_N = to_device(np.stack([rows, columns]), self._p_BX.device).unbind(0)
        p_NV = self._law.at(columns_N[:, None], rows.tolist())[:, 0]
        self._p_BIV[rows_N, self._slots_BX[rows_N, columns_N]] = p_NV
        children_NW = self._children_BXW[rows_N, columns_N]
        self._p_BX[rows_N[:, None], children_NW] = p_NV.gather(1, self._tokens_BX[rows_N[:, None], children_NW])

    def _weigh(self, rows_R: Tensor, nodes_R: Tensor) -> None:
        """Give nodes the weight that follows from what is left at their parents."""
        w0_R, scale_R, mass_R, undrawn_R = self._left_BX4[rows_R, self._parents_BX[rows_R, nodes_R]].unbind(1)
        p_R, q_R = self._p_BX[rows_R, nodes_R], self._q_BX[rows_R, nodes_R]
        kept_R = (w0_R * p_R - scale_R * q_R).clamp(min=0) / (mass_R + 1 - w0_R)
        drawn_R = torch.where(q_R > 0, q_R / undrawn_R, 0.0)
        weight_R = (kept_R / drawn_R).nan_to_num(nan=0.0, posinf=1.0).clamp(max=1)
        one_R = torch.ones_like(weight_R)
        self._left_BX4[rows_R, nodes_R] = torch.stack([weight_R, 0 * one_R, weight_R, one_R], dim=1)

    def delete(self, rows_R: Tensor, nodes_R: Tensor) -> None:
        """Take nodes away from their parents; the only work on whole distributions."""
        parents_R = self._parents_BX[rows_R, nodes_R]
        w0_R, scale_R, mass_R, undrawn_R = self._left_BX4[rows_R, parents_R].unbind(1)
        scale_R = scale_R + torch.where(undrawn_R > 0, (mass_R + 1 - w0_R) / undrawn_R, 0.0)
        self._frozen_BX[rows_R, nodes_R] = scale_R
        p_RV = self._p_BIV[rows_R, self._slots_BX[rows_R, parents_R]]
        tokens_RW, rest_RW, is_child_RW, later_RW = self._children(rows_R, parents_R, w0_R, scale_R)
        q_RV = draft_law(self._draft, rows_R, parents_R, tokens_RW, p_RV)
        # The children's own shares are known apart, so that small masses are not differences of large ones.
        p_RV.scatter_(1, tokens_RW, 0.0)
        q_RV.scatter_(1, tokens_RW, 0.0)
        undrawn_R = q_RV.sum(1) + later_RW.sum(1)
        others_R = p_RV.mul_(w0_R[:, None]).sub_(q_RV.mul_(scale_R[:, None])).clamp_(min=0).sum(1)
        rest_R = others_R + (rest_RW * is_child_RW).sum(1)
        self._left_BX4[rows_R, parents_R] = torch.stack([w0_R, scale_R, rest_R, undrawn_R], dim=1)

    def _children(
        self, rows_R: Tensor, columns_R: Tensor, w0_R: Tensor, scale_R: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(R, W) each: the children's tokens, what is left of (w0 p - c q)+ there, which places are no repeats, and the
        q of the children that are not deleted.
        """
        children_RW, is_child_RW = self._children_BXW[rows_R, columns_R], self._is_child_BXW[rows_R, columns_R]
        rows_R1 = rows_R[:, None]
        frozen_RW, p_RW, q_RW = (v[rows_R1, children_RW] for v in (self._frozen_BX, self._p_BX, self._q_BX))
        scale_RW = torch.where(frozen_RW < 0, scale_R[:, None], frozen_RW)
        rest_RW = (w0_R[:, None] * p_RW - scale_RW * q_RW).clamp(min=0)
        later_RW = torch.where(is_child_RW & (frozen_RW < 0), q_RW, 0.0)
        return self._tokens_BX[rows_R1, children_RW], rest_RW, is_child_RW, later_RW

    def next_weights(self, rows_B: Tensor, ends_B: Tensor) -> Tensor:
        """(B, V): what is left of p after the accepted nodes, up to a factor."""
        w0_B, scale_B, _, _ = self._left_BX4[rows_B, ends_B].unbind(1)
        p_BV = self._law.at(ends_B[:, None])[:, 0]
        tokens_BW, rest_BW, is_child_BW, _ = self._children(rows_B, ends_B, w0_B, scale_B)
        q_BV = draft_law(self._draft, rows_B, ends_B, tokens_BW, p_BV)
        rest_BV = (w0_B[:, None] * p_BV - scale_B[:, None] * q_BV).clamp(min=0).scatter(1, tokens_BW, rest_BW)
        is_leaf_B1 = ~is_child_BW.any(1, keepdim=True)
        return torch.where(is_leaf_B1, p_BV, decisions.with_mass(rest_BV, rest_BV.sum(1), p_BV))
