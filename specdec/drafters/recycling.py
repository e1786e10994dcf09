"""Token recycling: drafts from the target's own top-k continuations of tokens that it has read before.

Every row keeps an adjacency list: for each token the k most probable tokens that the target gave after it, the last
time that the row contained it. A draft is a chain of first choices, or a static tree of ranks over these lists.
What the published method learns from other requests and from rejected drafts is left out: a row's draft depends on that
row's committed tokens alone. The lists come from the target's hidden states by its own head; on a GPU a draft waits for
them once.
Source: Luo et al. 2024, "Turning Trash into Treasure", arXiv 2408.08696.
Shape letters: B rows, T tokens fed, D width, N kept tokens, K continuations.
"""

from __future__ import annotations

from itertools import islice

import torch
from torch import Tensor

from specdec.core.outputs import NORMED
from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.core.siblings import CHOSEN
from specdec.core.transfer import to_device
from specdec.drafters.base import Drafter
from specdec.drafters.chain import chosen_chains
from specdec.drafters.context import DrafterContext
from specdec.drafters.picker import top_tokens
from specdec.drafters.token_trees import TokenTree, chosen_trees
from specdec.errors import ConfigError
from specdec.trees.shape import ASSUMED, Shape, best_shape

TOGETHER = 256
"""Tokens whose logits are computed at once: those of long prompts would take more memory than their cache."""


class RecyclingDrafter(Drafter):
    """Chains or static trees over the row's adjacency lists; no weights of its own."""

    hidden_layers = (NORMED,)

    def __init__(self, context: DrafterContext, *, choices: int, nodes: int | None) -> None:
        if choices < 1:
            raise ConfigError(f"drafter.choices={choices}: it must be at least 1")
        if nodes is not None:
            if nodes < 1:
                raise ConfigError(f"drafter.nodes={nodes}: it must be at least 1, or null for a chain")
            self.siblings = CHOSEN
        chances = [row[:choices] for row in ASSUMED]
        self._shapes = [best_shape(chances[:depth], nodes or 1) for depth in range(len(chances) + 1)]
        self._nodes, self._choices, self._device = nodes, choices if nodes else 1, context.device
        self._head = context.target.module.get_output_embeddings()
        self._after: dict[int, dict[int, list[int]]] = {}  # by row: the continuations of each token
        self._num_read: dict[int, int] = {}  # by row: tokens whose continuations are in the list
        self._new: dict[int, list[Tensor]] = {}  # by row: continuations (N, K) of the tokens after these

    def admit(self, rows: list[Sequence]) -> None:
        for row in rows:
            self._after[row.index], self._num_read[row.index], self._new[row.index] = {}, 0, []

    @torch.inference_mode()
    def observe_hidden(self, rows: list[Sequence], hidden_BTD: Tensor, kept: list[list[int]]) -> None:
        """The head's first choices after every token that is kept. A round's tokens are not emitted yet."""
        counts = [len(columns) for columns in kept]
        if not any(counts):
            return
        index = [(b, column) for b, columns in enumerate(kept) for column in columns]
        rows_N, columns_N = to_device(index, hidden_BTD.device).unbind(1)
        parts = zip(rows_N.split(TOGETHER), columns_N.split(TOGETHER), strict=True)
        top_NK = torch.cat([self._top(hidden_BTD[part]) for part in parts])
        for row, part in zip(rows, top_NK.split(counts), strict=True):
            self._new[row.index].append(part)

    def _top(self, hidden_ND: Tensor) -> Tensor:
        """(N, K)."""
        logits_NV: Tensor = self._head(hidden_ND)
        return top_tokens(logits_NV, min(self._choices, logits_NV.shape[1]))

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        self._learn(rows)
        drafts = [self._draft(row, gamma) for row, gamma in zip(rows, gammas, strict=True)]
        if self._nodes is None:
            return chosen_chains([tree.tokens for tree in drafts], self._device)
        return chosen_trees(drafts, self._device)

    def release(self, rows: list[Sequence]) -> None:
        for row in rows:
            del self._after[row.index], self._num_read[row.index], self._new[row.index]

    def _learn(self, rows: list[Sequence]) -> None:
        """Enter what was observed since the rows' last draft: one fetch for all of them."""
        parts = [part for row in rows for part in self._new[row.index]]
        choices = iter(torch.cat(parts).tolist() if parts else [])
        for row in rows:
            count, read = sum(map(len, self._new[row.index])), self._num_read[row.index]
            self._after[row.index].update(zip(row.tokens(read)[:count], islice(choices, count), strict=True))
            self._num_read[row.index], self._new[row.index] = read + count, []

    def _draft(self, row: Sequence, gamma: int) -> TokenTree:
        after, last = self._after[row.index], row.last_token
        if self._nodes is None:
            return _chain(after, last, gamma)
        return _tree(after, last, self._shapes[min(gamma, len(self._shapes) - 1)])


def _chain(after: dict[int, list[int]], last: int, gamma: int) -> TokenTree:
    """First choices, one after the other."""
    tree = TokenTree()
    while len(tree.tokens) < gamma and last in after:
        last = after[last][0]
        tree.parents.append(len(tree.tokens) - 1)
        tree.tokens.append(last)
    return tree


def _tree(after: dict[int, list[int]], last: int, shape: Shape) -> TokenTree:
    """The nodes of a static tree whose tokens are known."""
    tree, place = TokenTree(), {-1: -1}  # node of the shape: node of the tree
    for node, (parent, rank) in enumerate(zip(shape.parents, shape.ranks, strict=True)):
        if parent not in place:
            continue
        choices = after.get(tree.tokens[place[parent]] if parent >= 0 else last, [])
        if rank < len(choices):
            place[node] = len(tree.tokens)
            tree.parents.append(place[parent])
            tree.tokens.append(choices[rank])
    return tree
