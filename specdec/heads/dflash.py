"""DFlash: a block of mask tokens is filled in one forward; no slot sees which tokens the others draft.

Source: arXiv 2602.06036 (DFlash).
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.drafters.context import DrafterContext
from specdec.drafters.picker import Picker
from specdec.heads.blocks import BlockDrafter
from specdec.heads.weights import head_of


class DFlashDrafter(BlockDrafter):
    """One token per slot, each by its own distribution."""

    def __init__(self, context: DrafterContext, *, path: str | None, untrained: bool) -> None:
        head = head_of("dflash", context, path, untrained, mask_token_id=0)
        super().__init__(context, head, bool(head.spec.setting("sample_from_anchor")))

    def _choose(self, rows: list[Sequence], gammas: list[int], states_BGD: Tensor) -> Draft:
        logits_BGV, pick = self.head.full(self.head.logits(states_BGD[:, : max(gammas)])), Picker(rows)
        tokens = [pick(logits_BGV[:, g]) for g in range(max(gammas))]
        return Draft(torch.stack(tokens, dim=1), gammas, probs_BGV=pick.probs_BGV)
