"""SpecBlock: one forward drafts a block of several tokens, and the next block may start at any of its slots.

A block is made of the same input in every slot, that of EAGLE-3: a token's embedding, and the hidden states of the
target's layers before it, or (later blocks) the state of the slot that drafted the token. Slot k stands k positions
further on and attends to the text, to the slots that led to its block, and to those before it. Between two layers a
slot's state is projected together with that of the slot before: h_k <- W [h_k; h_(k-1)], slot 0 with itself. A rank
head says for each slot where among the draft's tokens the target's will be. Keys and values stay of true entries only.
Source: arXiv 2605.07243 (SpecBlock). Its folders have the names of `speculators`' EAGLE-3, and `shifts.N.weight`,
`rank_head.weight` and `rank_head.bias`.
Shape letters: B rows, T entries and slots fed, K slots of a block, D the head's states, X what the layers are fed, N
tokens that can be drafted, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.core.siblings import CHAIN, CHOSEN
from specdec.core.transfer import to_device
from specdec.drafters.chain import chosen_chains
from specdec.drafters.context import DrafterContext
from specdec.drafters.picker import Picker
from specdec.errors import ConfigError
from specdec.heads.block_tree import BlockTree
from specdec.heads.eagle3 import Eagle3, LoadableDrafter
from specdec.heads.layers import HeadExecution
from specdec.heads.shapes import NUM_TOP, NUM_WIDE
from specdec.heads.steps import Unread
from specdec.heads.weights import Head, head_of
from specdec.models.causal_lm import CausalLM
from specdec.models.execution.base import Call
from specdec.models.execution.fused import Layer


class ShiftedExecution(HeadExecution):
    """The layers, with a projection of each slot and the one before between them.

    The last number of an input says whether the slot is the first of its block: 1, or 0.
    """

    shifts: list[Tensor]

    def run(self, call: Call) -> Tensor:
        """States (B, T, D) for vectors (B, T, X)."""
        first_BT1 = call.tokens_BT[..., -1:] > 0.5
        x_MD = call.tokens_BT[..., :-1].flatten(0, 1)
        rotation = self.rotation(x_MD, call.positions(), call.writer.num_columns)
        for layer, mask in zip(self.layers, self.masks(call), strict=True):
            x_MD = layer(x_MD, rotation, mask, call.writer)
            if layer is not self.layers[-1]:
                x_BTD = x_MD.view(*first_BT1.shape[:2], -1)
                before_BTD = torch.where(first_BT1, x_BTD, x_BTD.roll(1, dims=1))
                x_MD = linear(torch.cat([x_BTD, before_BTD], dim=-1), self.shifts[layer.number]).flatten(0, 1)
        return x_MD.view(*first_BT1.shape[:2], -1)


class SpecBlock(Eagle3):
    """The layers, the head over the draft's vocabulary, and the rank head."""

    def __init__(self, head: Head, target: CausalLM) -> None:
        super().__init__(head, target)
        self._rank = head.tensors["rank_head.weight"], head.tensors["rank_head.bias"]

    def execution(self, head: Head, layers: list[Layer], rotary: Any, finish: Any) -> HeadExecution:
        made = ShiftedExecution(layers, rotary, finish)
        made.shifts = [head.tensors[f"shifts.{number}.weight"] for number in range(len(layers) - 1)]
        return made

    def inputs(self, embeds_BTD: Tensor, features_BTD: Tensor) -> Tensor:
        """Those of first slots."""
        return torch.cat([embeds_BTD, features_BTD, torch.ones_like(embeds_BTD[..., :1])], dim=-1)

    def read(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (..., V) of the next token; and (..., C) of its rank in them: 1, 2 to 4, 5 to 10, or beyond.

        The rank follows from the normed state; the logarithms of the ten largest probabilities; how far the second,
        third and fifth of them are below the first; the first probability and the entropy among the twenty largest.
        """
        normed, logits = self.normed(states), self.draft_logits(states)
        wide = logits.float().log_softmax(-1).topk(NUM_WIDE, dim=-1).values
        gaps = wide[..., :1] - torch.cat([wide[..., 1:3], wide[..., 4:5]], dim=-1)  # an index list would be uploaded
        among = wide.softmax(-1)
        figures = [wide[..., :NUM_TOP], gaps, among[..., :1], torch.special.entr(among).sum(-1, keepdim=True)]
        ranks = linear(torch.cat([normed, *(part.to(normed) for part in figures)], dim=-1), *self._rank)
        return self.vocabulary.full(logits), ranks


class SpecBlockDrafter(LoadableDrafter):
    """Chains of drawn tokens, or trees of the most probable ones that branch by the rank head."""

    make = SpecBlock
    head: SpecBlock

    def __init__(
        self, context: DrafterContext, *, path: str | None, untrained: bool, nodes: int | None, leaves: int
    ) -> None:
        for name, value in (("nodes", nodes), ("leaves", leaves)):
            if value is not None and value < 1:
                raise ConfigError(f"drafter.{name}={value}: it must be at least 1")
        head = head_of("specblock", context, path, untrained)
        super().__init__(context, head)
        self.siblings, self.max_length = CHAIN if nodes is None else CHOSEN, None
        self._block, self._nodes, self._leaves = head.spec.block_size, nodes, leaves

    @property
    def branches(self) -> bool:
        """Whether drafts are trees, which the rank head shapes."""
        return self._nodes is not None

    @torch.inference_mode()
    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        """Feed the new hidden states and the first block in one forward, then further blocks."""
        counts = [gamma if row.length > 1 else 0 for row, gamma in zip(rows, gammas, strict=True)]
        if not any(counts):
            return chosen_chains([[] for _ in rows], self._device)
        new = self._take(rows, [count > 0 for count in counts])
        states_BKD = self._first_block([row.index for row in rows], new, counts)
        if self._nodes is None:
            return self._chain(rows, counts, states_BKD)
        tree = BlockTree(rows, counts, new.counts, self._block, self._nodes, self._leaves)
        return self._grown(rows, tree, states_BKD)

    def _first_block(self, keys: list[int], new: Unread, counts: list[int]) -> Tensor:
        """States (B, K, D) of the block after each row's last true entry, which is its slot 0."""
        size = min(self._block, max(counts))
        more = [min(self._block, count) - 1 if count else 0 for count in counts]
        fed = [n + k for n, k in zip(new.counts, more, strict=True)]
        true_BTX = self.head.inputs(self.head.embed(new.tokens_BT), self.head.features(new.hidden_BTH))
        known_B1 = to_device(new.counts, self._device)[:, None]
        rows_B1 = torch.arange(len(keys), device=self._device)[:, None]
        last_B1X = true_BTX[rows_B1, (known_B1 - 1).clamp(min=0)]
        inputs_BTX = torch.nn.functional.pad(true_BTX, (0, 0, 0, max(fed) - true_BTX.shape[1]))
        real_BT1 = (torch.arange(max(fed), device=self._device) < known_B1)[..., None]
        states_BTD = self._feed(keys, torch.where(real_BT1, inputs_BTX, _later(last_B1X)), fed)
        columns_BK = (known_B1 - 1 + torch.arange(size, device=self._device)).clamp(0, max(fed) - 1)
        return states_BTD[rows_B1, columns_BK]

    def _blocks(
        self, keys: list[int], tokens_BN: Tensor, states_BND: Tensor, counts: list[int], parents: Any = None
    ) -> Tensor:
        """States (B, N, K, D) of blocks that start at tokens, each drafted by a slot with a state.

        Args:
            counts: slots fed per row, of its blocks one after the other.
        """
        first_BNX = self.head.inputs(self.head.embed(tokens_BN), states_BND)
        later_BNKX = _later(first_BNX)[:, :, None].expand(-1, -1, self._block - 1, -1)
        inputs_BTX = torch.cat([first_BNX[:, :, None], later_BNKX], dim=2).flatten(1, 2)
        width = max(counts)
        states_BTD = self._feed(keys, inputs_BTX[:, :width], counts, parents)
        missing = inputs_BTX.shape[1] - width
        states_BNKD: Tensor = torch.nn.functional.pad(states_BTD, (0, 0, 0, missing)).unflatten(1, (-1, self._block))
        return states_BNKD

    def _chain(self, rows: list[Sequence], counts: list[int], states_BKD: Tensor) -> Draft:
        """Every slot's token by the slot's own distribution, which does not depend on the tokens of its block."""
        keys, pick, size = [row.index for row in rows], Picker(rows), self._block
        tokens, chances = list[Tensor](), list[Tensor]()
        for g in range(max(counts)):
            if g and g % size == 0:
                fed = [min(max(count - g, 0), size) for count in counts]
                states_BKD = self._blocks(keys, tokens[-1][:, None], states_BKD[:, -1:], fed)[:, 0]
            if g % size == 0:
                logits_BKV, ranks_BKC = self.head.read(states_BKD)
                chances.append(ranks_BKC.float().softmax(-1)[..., 0])
            tokens.append(pick(logits_BKV[:, g % size]))
        probs_BGV = pick.probs_BGV
        # The rank head is about the most probable token: it says nothing of one that is drawn.
        chances_BG = None if probs_BGV is not None else torch.cat(chances, dim=1)[:, : len(tokens)]
        return Draft(torch.stack(tokens, dim=1), counts, probs_BGV=probs_BGV, chances_BG=chances_BG)

    def _grown(self, rows: list[Sequence], tree: BlockTree, states_BKD: Tensor) -> Draft:
        """A tree, block by block: all blocks of all rows that can start are one forward."""
        keys = [row.index for row in rows]
        states_BNKD = torch.nn.functional.pad(states_BKD, (0, 0, 0, self._block - states_BKD.shape[1]))[:, None]
        rows_B1 = torch.arange(len(rows), device=self._device)[:, None]
        while (feed := tree.add(*self.head.read(states_BNKD))) is not None:
            states_BND = states_BNKD.flatten(1, 2)[rows_B1, to_device(feed.slots_BN, self._device)]
            tokens_BN = to_device(feed.tokens_BN, self._device)
            states_BNKD = self._blocks(keys, tokens_BN, states_BND, feed.counts, feed.parents)
        return tree.draft(self._device)


def _later(first_BNX: Tensor) -> Tensor:
    """Inputs of slots after the first of their blocks."""
    return torch.cat([first_BNX[..., :-1], torch.zeros_like(first_BNX[..., :1])], dim=-1)
