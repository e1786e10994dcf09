"""A draft model that learns while it serves: next-token loss on the tokens that the target chose.

Shape letters: B rows, T tokens, K drafted tokens, V vocabulary.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from specdec.adaptation.served import ServedRow
from specdec.drafters.base import Drafter
from specdec.drafters.context import DrafterContext
from specdec.training.losses import cross_entropy, masked_sum
from specdec.training.online import DRAFTER, Lessons, ModuleLearner, rounds_of


class ModelLearner(ModuleLearner):
    """One arm: all weights. Keys and values that the old ones made stay in the caches, so exactness of the draft's own
    cache is given up, not that of the output."""

    def __init__(self, drafter: Drafter, context: DrafterContext, *, lr: float, depth: int) -> None:
        assert context.draft is not None
        self._draft, self._depth = context.draft, depth
        module = copy.deepcopy(context.draft.module).float()
        super().__init__(module, {DRAFTER: list(module.parameters())}, lr)

    def loss(self, lessons: Lessons, arm: str) -> Tensor:
        counted_BT = lessons.chosen_BT[:, 1:]
        values_BT = cross_entropy(self._logits(lessons), lessons.ids_BT[:, 1:])
        return masked_sum(values_BT, counted_BT) / counted_BT.sum().clamp(min=1)

    def rounds(self, rows: list[ServedRow]) -> list[int]:
        lessons = Lessons.of(rows, self.device)
        same_BT = self._logits(lessons).argmax(-1) == lessons.ids_BT[:, 1:]
        return rounds_of(rows, nn.functional.pad(same_BT, (0, self._depth)).unfold(1, self._depth, 1))

    def serve(self) -> None:
        with torch.no_grad():
            for served, learned in zip(self._draft.module.parameters(), self.module.parameters(), strict=True):
                served.copy_(learned)
        self._draft.refresh()

    def _logits(self, lessons: Lessons) -> Tensor:
        logits_BTV: Tensor = self.module(input_ids=lessons.ids_BT[:, :-1], use_cache=False).logits
        return logits_BTV.float()
