"""DSpark: DFlash's block, with a low-rank bias by the token before each slot, and a confidence for every slot.

The block is one forward; its tokens are then chosen one after the other, each by its slot's logits plus
W2 W1[token before]. The confidence, sigma(w [state; W1[token before]] + b), predicts that the slot's token is accepted.
Source: arXiv 2607.05147 (DSpark).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.core.transfer import to_device
from specdec.drafters.context import DrafterContext
from specdec.drafters.picker import Picker
from specdec.heads.blocks import BlockDrafter
from specdec.heads.markov import PLAIN, MarkovHead
from specdec.heads.spec import HeadSpec
from specdec.heads.weights import head_of


class DSparkDrafter(BlockDrafter):
    """One token per slot, each by its slot and the token before it."""

    def __init__(self, context: DrafterContext, *, path: str | None, untrained: bool) -> None:
        head = head_of("dspark", context, path, untrained, mask_token_id=0, markov_rank=32)
        super().__init__(context, head, _from_anchor(head.spec))
        self._tensors, config = head.tensors, head.spec.config
        self._markov: MarkovHead | None = None
        if "markov_head.markov_w1.weight" in head.tensors:
            self._markov = MarkovHead(head.tensors, config.get("markov_head_type", PLAIN))
        self._with_markov = bool(config.get("confidence_head_with_markov", True))
        # One per slot; a setting of train.py alone, which other trainers leave out.
        temperatures = config.get("confidence_temperatures") or [1.0] * head.spec.block_size
        self._temperatures_G = torch.tensor(temperatures, dtype=context.target.dtype, device=context.device)

    def _choose(self, rows: list[Sequence], gammas: list[int], states_BGD: Tensor) -> Draft:
        states_BGD = states_BGD[:, : max(gammas)]
        logits_BGN, pick = self.head.logits(states_BGD), Picker(rows)
        before_B = to_device([row.last_token for row in rows], states_BGD.device)
        tokens, before = list[Tensor](), list[Tensor]()
        if self._markov is not None:
            self._markov.restart()
        for g in range(max(gammas)):
            logits_BN = logits_BGN[:, g]
            if self._markov is not None:
                before_BR, bias_BN = self._markov(before_B, states_BGD[:, g])
                before.append(before_BR)
                logits_BN = logits_BN + bias_BN
            before_B = pick(self.head.full(logits_BN))
            tokens.append(before_B)
        chances_BG = self._confidences(states_BGD, before)
        return Draft(torch.stack(tokens, dim=1), gammas, probs_BGV=pick.probs_BGV, chances_BG=chances_BG)

    def _confidences(self, states_BGD: Tensor, before: list[Tensor]) -> Tensor | None:
        """(B, G): slot g's sees the tokens before it alone, and never the one that it is about."""
        weight = self._tensors.get("confidence_head.proj.weight")
        if weight is None:
            return None
        with_markov = self._with_markov and before
        features = torch.cat([states_BGD, torch.stack(before, dim=1)], dim=-1) if with_markov else states_BGD
        scores_BG = linear(features, weight, self._tensors["confidence_head.proj.bias"])[..., 0]
        return (scores_BG / self._temperatures_G[: scores_BG.shape[1]]).sigmoid()


def _from_anchor(spec: HeadSpec) -> bool:
    """Whether the anchor's slot predicts the first token: so do all but those that say otherwise."""
    return bool(spec.setting("sample_from_anchor", not spec.setting("dspark_bonus_anchor", False)))
