"""The trees of one round that grow block by block: each block's chain, and branches where its rank head sees them.

A block drafts the most probable token of every slot. At its first slot whose rank is expected below the first, the tree
branches: into the four most probable tokens (ranks 2 to 4 expected) or ten (5 to 10); where the head expects no rank up
to ten it gives up, and the block's chain is all that it adds. Further blocks start at the branches, or after the last
slot of a block without any. A block that starts at the most probable token takes the place of the older block's later
slots. In the end the nodes of the largest product of probabilities stay; they include their ancestors.
Source: arXiv 2605.07243 (SpecBlock).
Shape letters: B rows, N blocks of a forward, K slots, J ranks, M = N K J nodes that a forward may add, A nodes of all
forwards, L blocks of the next one, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specdec.core.round import Draft
from specdec.core.sampling import penalized, seen_tokens, settings_of
from specdec.core.sequence import Sequence
from specdec.core.transfer import to_device
from specdec.trees.drawing import most_probable

BRANCHES = np.array([1, 4, 10, 0])  # tokens of the slot at which a tree branches, by the class of its rank
NUM_RANKS = 10
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Feed:
    """The blocks that are computed next."""

    tokens_BN: Ints
    slots_BN: Ints  # the slot that drafted each, among all slots of the forward before
    counts: list[int]  # slots fed per row
    parents: list[list[int]]  # of each slot, among all slots fed since the last commit


@dataclass(frozen=True, slots=True)
class _Blocks:
    """The blocks of one forward; places after a row's last hold nothing."""

    nodes_BN: Ints  # the node that each starts from, among all nodes; -1: the last committed token
    depths_BN: Ints  # of those
    scores_BN: Floats  # logarithms of the products of probabilities down to them
    real_BN: Bools
    fed_BN: Ints  # number of slot 0 among all slots fed


@dataclass(frozen=True, slots=True)
class _Nodes:
    """The nodes that one forward may add: (B, M) each."""

    tokens: Ints
    parents: Ints
    scores: Floats
    real: Bools


class BlockTree:
    """Call ``add`` with what the blocks fed say, until it returns None; then take ``draft()``.

    Args:
        gammas: the depth of each row's tree; 0: none. known: true entries of each row, the last of which is slot 0.
        block: K. num_kept: nodes of a row's draft. leaves: blocks of a row in one forward, at most.
    """

    def __init__(
        self, rows: list[Sequence], gammas: list[int], known: list[int], block: int, num_kept: int, leaves: int
    ) -> None:
        self._rows, self._settings = rows, settings_of(rows)
        self._gammas_B1, self._size, self._num_kept, self._leaves = np.array(gammas)[:, None], block, num_kept, leaves
        self._num_fed_B = np.array(known) + np.array([min(block, gamma) - 1 if gamma else 0 for gamma in gammas])
        root_B1 = np.zeros((len(rows), 1))
        self._blocks = _Blocks(
            root_B1.astype(int) - 1, root_B1.astype(int), root_B1, self._gammas_B1 > 0, np.array(known)[:, None] - 1
        )
        self._nodes: list[_Nodes] = []

    def add(self, logits_BNKV: Tensor, ranks_BNKC: Tensor) -> Feed | None:
        """Take the nodes that the blocks draft; returns the blocks to compute next, None if there are none."""
        blocks, num_before = self._blocks, sum(part.tokens.shape[1] for part in self._nodes)
        tokens_BNKJ, logs_BNKJ, classes_BNK = self._read(logits_BNKV, ranks_BNKC)
        num_rows, (N, K, J) = len(tokens_BNKJ), tokens_BNKJ.shape[1:]
        # A slot's nodes hang below the first node of the slot before, which is the block's chain.
        chain_BNK = np.broadcast_to(num_before + np.arange(N * K).reshape(N, K) * J, (num_rows, N, K))
        parents_BNK = np.concatenate([blocks.nodes_BN[..., None], chain_BNK[..., :-1]], axis=-1)
        above_BNK = np.cumsum(logs_BNKJ[..., 0], -1) - logs_BNKJ[..., 0] + blocks.scores_BN[..., None]
        scores_BNKJ = above_BNK[..., None] + logs_BNKJ
        depths_BNK = blocks.depths_BN[..., None] + np.arange(K) + 1
        fork_BN1 = np.where((classes_BNK > 0).any(-1), (classes_BNK > 0).argmax(-1), K)[..., None]
        branches_BNKJ = _branches(classes_BNK, fork_BN1, J)
        inside_BNK = blocks.real_BN[..., None] & (depths_BNK <= self._gammas_B1[..., None])
        real_BNKJ = inside_BNK[..., None] & (branches_BNKJ | (np.arange(J) == 0)) & np.isfinite(scores_BNKJ)
        ends_BNKJ = real_BNKJ & branches_BNKJ
        ends_BNKJ[..., -1, 0] |= real_BNKJ[..., -1, 0] & (fork_BN1[..., 0] == K)  # a block without a fork
        ends_BNKJ &= ((depths_BNK < self._gammas_B1[..., None]) & self._may_go_on()[:, None, None])[..., None]
        chosen_BNKJ = _best(np.where(ends_BNKJ, scores_BNKJ, -np.inf), self._leaves).reshape(ends_BNKJ.shape)
        replaced_BN1 = chosen_BNKJ[..., 0].any(-1, keepdims=True)
        real_BNKJ &= ~(replaced_BN1 & (np.arange(K) > fork_BN1))[..., None]
        flat = (num_rows, N * K * J)
        parents_BM, depths_BM = (
            np.broadcast_to(part[..., None], ends_BNKJ.shape).reshape(flat) for part in (parents_BNK, depths_BNK)
        )
        self._nodes.append(
            _Nodes(tokens_BNKJ.reshape(flat), parents_BM, scores_BNKJ.reshape(flat), real_BNKJ.reshape(flat))
        )
        return self._next(chosen_BNKJ.reshape(flat), depths_BM, (K, J), num_before)

    def draft(self, device: torch.device) -> Draft:
        """The drafts of all rows."""
        tokens_BA, parents_BA, scores_BA, real_BA = (
            np.concatenate([getattr(part, name) for part in self._nodes], axis=1)
            for name in ("tokens", "parents", "scores", "real")
        )
        kept_BA = _best(np.where(real_BA, scores_BA, -np.inf), self._num_kept)
        counts_B, numbers_BA = kept_BA.sum(1), np.where(kept_BA, kept_BA.cumsum(1) - 1, -1)
        order_BG = (~kept_BA).argsort(axis=1, kind="stable")[:, : int(counts_B.max())]
        parents_BA = np.where(parents_BA < 0, -1, np.take_along_axis(numbers_BA, parents_BA.clip(min=0), 1))
        parents = np.take_along_axis(parents_BA, order_BG, 1).tolist()
        counts: list[int] = counts_B.tolist()
        return Draft(
            to_device(np.take_along_axis(tokens_BA, order_BG, 1), device),
            counts,
            [row[:count] for row, count in zip(parents, counts, strict=True)],
        )

    def _may_go_on(self) -> Bools:
        """(B): a row has as many forwards as its longest chain needs."""
        may_B: Bools = (len(self._nodes) + 1) * self._size < self._gammas_B1[:, 0]
        return may_B

    def _read(self, logits_BNKV: Tensor, ranks_BNKC: Tensor) -> tuple[Ints, Floats, Ints]:
        """The most probable tokens (B, N, K, J) and the logarithms of their probabilities; classes (B, N, K)."""
        scores_BTV = logits_BNKV.flatten(1, 2)
        if self._settings is not None:
            seen_BTV = seen_tokens(self._rows, None, scores_BTV[:, :1])
            scores_BTV = penalized(scores_BTV, self._settings, seen_BTV)
        logs_BTV = scores_BTV.float().log_softmax(-1)
        tokens_BTJ = most_probable(logs_BTV, NUM_RANKS)
        bits_BTJ = logs_BTV.gather(-1, tokens_BTJ).view(torch.int32).long()
        classes_BT1 = ranks_BNKC.argmax(-1).flatten(1)[..., None]
        found = torch.cat([tokens_BTJ, bits_BTJ, classes_BT1], dim=-1).cpu().numpy()
        found = found.reshape(*logits_BNKV.shape[:3], -1)
        count = tokens_BTJ.shape[-1]
        logs = found[..., count : 2 * count].astype(np.int32).view(np.float32).astype(np.float64)
        return found[..., :count], logs, found[..., -1]

    def _next(self, chosen_BM: Bools, depths_BM: Ints, sizes: tuple[int, int], num_before: int) -> Feed | None:
        """The blocks that start at chosen nodes; ``sizes``: K and J."""
        counts_B, last, (K, J) = chosen_BM.sum(1), self._nodes[-1], sizes
        if not counts_B.any():
            return None
        order_BL = (~chosen_BM).argsort(axis=1, kind="stable")[:, : int(counts_B.max())]
        slots_BL, blocks_L = order_BL // J, np.arange(order_BL.shape[1])
        fed_BL = self._num_fed_B[:, None] + blocks_L * K
        parents_BLK = fed_BL[..., None] + np.arange(K) - 1
        parents_BLK[..., 0] = np.take_along_axis(self._blocks.fed_BN, slots_BL // K, 1) + slots_BL % K
        self._num_fed_B = self._num_fed_B + counts_B * K
        self._blocks = _Blocks(
            num_before + order_BL,
            np.take_along_axis(depths_BM, order_BL, 1),
            np.take_along_axis(last.scores, order_BL, 1),
            blocks_L < counts_B[:, None],
            fed_BL,
        )
        counts: list[int] = (counts_B * K).tolist()
        parents = parents_BLK.reshape(len(counts), -1).tolist()
        return Feed(
            np.take_along_axis(last.tokens, order_BL, 1),
            slots_BL,
            counts,
            [row[:count] for row, count in zip(parents, counts, strict=True)],
        )


def _branches(classes_BNK: Ints, fork_BN1: Ints, num_ranks: int) -> Bools:
    """(B, N, K, J): the tokens of the slot at which a block forks, by the class of its rank."""
    at_fork_BNK = np.arange(classes_BNK.shape[-1]) == fork_BN1
    branches: Bools = np.where(at_fork_BNK, BRANCHES[classes_BNK], 0)[..., None] > np.arange(num_ranks)
    return branches


def _best(scores: Floats, count: int) -> Bools:
    """(B, M): each row's nodes of the highest scores above -inf; of equal ones those that come first."""
    scores_BM = scores.reshape(len(scores), -1)
    places_BM = (-scores_BM).argsort(axis=1, kind="stable").argsort(axis=1)
    best_BM: Bools = (places_BM < count) & (scores_BM > -np.inf)
    return best_BM
