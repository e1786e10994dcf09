"""A SpecBlock head that learns while it serves: its own training by blocks, from rows that were served.

The rank head shapes trees, and what a tree holds depends on all its blocks: rounds are counted by drafting rows again.
Source: arXiv 2605.07243 (SpecBlock), whose bandit chooses between these two arms and none.
Shape letters: B rows, T tokens, H the target's hidden states, A anchors, K slots of a block, N tokens that can be
drafted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from specdec.adaptation.replay import rounds_replayed
from specdec.adaptation.served import ServedRow
from specdec.drafters.context import DrafterContext
from specdec.heads.specblock import SpecBlockDrafter
from specdec.training.anchors import Anchors
from specdec.training.blocks import Batch
from specdec.training.config import HeadsConfig
from specdec.training.losses import cross_entropy
from specdec.training.online import DECAY, DRAFTER, HeadLearner, Lessons, layers_of, load_head
from specdec.training.specblock import (
    NUM_BLOCKS,
    SpecBlockHead,
    rank_head_loss,
    text_blocks,
    tokens_loss,
    true_ranks,
)

RANK_HEAD = "rank_head"
NUM_ANCHORS = 64  # of a row, in one update


class _Embedding:
    """Of a target, in the number format of what is trained; it stands for the target where only that is asked for."""

    def __init__(self, target: Any) -> None:
        self._embed = target.get_input_embeddings()

    def get_input_embeddings(self) -> Callable[[Tensor], Tensor]:
        return lambda ids: self._embed(ids).float()


class SpecBlockLearner(HeadLearner):
    """Arms: the rank head, which needs no gradients of the layers, and all weights; of chains, all weights alone."""

    module: SpecBlockHead

    def __init__(self, drafter: SpecBlockDrafter, context: DrafterContext, *, lr: float, depth: int) -> None:
        self._embedding, self._num_updates = _Embedding(context.target.module), 0
        spec = drafter.weights.spec
        layers = layers_of(drafter, context)
        cfg = HeadsConfig(layer_ids=layers, num_layers=spec.num_layers, num_heads=spec.block_size)
        module: Any = SpecBlockHead(context.target.module, cfg).to(context.device)
        load_head(module, drafter.weights)
        arms = {RANK_HEAD: list(module.rank_head.parameters())} if drafter.branches else {}
        self.missing = {} if arms else {RANK_HEAD: "it shapes trees: set drafter.nodes"}
        super().__init__(drafter, module, {**arms, DRAFTER: list(module.parameters())}, lr, depth)

    def loss(self, lessons: Lessons, arm: str) -> Tensor:
        batch, self._num_updates = Batch(lessons.ids_BT, lessons.chosen_BT, {}), self._num_updates + 1
        size, total = self.module.block_size, torch.zeros((), device=self.device)
        assert lessons.hidden_BTH is not None
        if lessons.ids_BT.shape[1] < 3:  # a block follows two tokens: nothing to learn
            return sum((part.sum() * 0.0 for part in self.module.rank_head.parameters()), start=total)
        anchors = Anchors.drawn(batch, NUM_ANCHORS, NUM_BLOCKS * size, self._num_updates, first=1)
        with torch.set_grad_enabled(arm == DRAFTER):
            hidden_BTH = pad(lessons.hidden_BTH, (0, 0, 0, 1))  # the last token's is not read
            blocks = text_blocks(self.module, self._embedding, batch, hidden_BTH, anchors, self._num_updates)
            logits = [self.module.logits(block.states_BAKD).float() for block in blocks]
        for block, logits_BAKN in zip(blocks, logits, strict=True):
            ranks_BAK = true_ranks(self.module, logits_BAKN, block.truth_BAK)
            total = total + rank_head_loss(self.module, block, logits_BAKN, ranks_BAK)
            if arm == DRAFTER:
                places_BAK, known_BAK = self.module.tokens.places(block.truth_BAK)
                values_BAK = cross_entropy(logits_BAKN, places_BAK)
                total = total + tokens_loss(values_BAK, block.counted_BAK & known_BAK, ranks_BAK, DECAY)
        return total / anchors.counted_BAK.any(-1).sum().clamp(min=1)

    def use(self, state: dict[str, Tensor]) -> None:
        super().use(state)
        self.serve()  # the drafter itself is asked

    def rounds(self, rows: list[ServedRow]) -> list[int]:
        return rounds_replayed(self._drafter, rows, self._depth)
