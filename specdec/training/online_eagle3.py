"""An EAGLE-3 head that learns while it serves: its own unrolled training, from rows that were served.

Shape letters: B rows, T tokens, D hidden size, K drafted tokens, N tokens that can be drafted.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from specdec.adaptation.served import ServedRow
from specdec.drafters.context import DrafterContext
from specdec.heads.eagle3 import Eagle3Drafter
from specdec.training.eagle3 import Eagle3Head
from specdec.training.losses import cross_entropy, masked_sum
from specdec.training.online import DECAY, DRAFTER, HeadLearner, Lessons, layers_of, load_head, rounds_of

HEAD = "head"


class Eagle3Learner(HeadLearner):
    """Arms: the head of logits, which needs no gradients of the layer, and all weights."""

    def __init__(self, drafter: Eagle3Drafter, context: DrafterContext, *, lr: float, depth: int) -> None:
        self._embed = context.target.module.get_input_embeddings()
        module = Eagle3Head(context.target.module, layers_of(drafter, context)).to(context.device)
        load_head(module, drafter.weights)
        arms = {HEAD: list(module.lm_head.parameters()), DRAFTER: list(module.parameters())}
        super().__init__(drafter, module, arms, lr, depth)

    def loss(self, lessons: Lessons, arm: str) -> Tensor:
        total, count = torch.zeros((), device=self.device), lessons.chosen_BT[:, 2:].sum().clamp(min=1)
        with torch.set_grad_enabled(arm == DRAFTER):
            states = list(self._steps(lessons))
        for step, states_BTD in enumerate(states):
            truth_BT, known_BT = self.module.tokens.places(lessons.ids_BT[:, 2 + step :])
            values_BT = cross_entropy(self.module.logits(states_BTD[:, step:-1]), truth_BT)
            counted_BT = lessons.chosen_BT[:, 2 + step :] & known_BT
            total = total + DECAY**step * masked_sum(values_BT, counted_BT)
        return total / count

    def rounds(self, rows: list[ServedRow]) -> list[int]:
        return rounds_of(rows, self._right(Lessons.of(rows, self.device)))

    def _right(self, lessons: Lessons) -> Tensor:
        """(B, T, K) bool: whether greedy drafted token k after token t is the row's."""
        ids_BT, ids_N = lessons.ids_BT, self.module.tokens.ids
        right_BTK = torch.zeros(*ids_BT.shape, self._depth, dtype=torch.bool, device=self.device)
        for step, states_BTD in enumerate(self._steps(lessons)):
            drafted_BT = self.module.logits(states_BTD[:, step:-1]).argmax(-1)
            drafted_BT = drafted_BT if ids_N is None else ids_N[drafted_BT]
            # Entry t predicts token t + 2; drafted token k after token t is that of entry t - 1 + k at step k.
            right_BTK[:, 1 : 1 + drafted_BT.shape[1], step] = drafted_BT == ids_BT[:, 2 + step :]
        return right_BTK

    def _steps(self, lessons: Lessons) -> Iterator[Tensor]:
        """The states (B, T, D) of every step."""
        assert lessons.hidden_BTH is not None
        embeds_BTD = self._embed(lessons.ids_BT[:, 1:]).detach().float()
        yield from self.module.unroll(embeds_BTD, lessons.hidden_BTH, self._depth)
