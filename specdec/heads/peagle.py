"""P-EAGLE: the layers of EAGLE-3, which draft all tokens in one forward.

After a row's last true entry come slots of a mask token and one learned vector in place of the hidden states, one per
further token, each at the next position; a slot attends to the entries and slots before it. No slot sees which tokens
the others draft. A commit drops the slots.
Shape letters: B rows, T entries and slots fed, G drafted tokens, X what the layers are fed, V vocabulary.
"""

from __future__ import annotations

import torch

from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.core.siblings import CHAIN
from specdec.core.transfer import to_device
from specdec.drafters.chain import chosen_chains
from specdec.drafters.context import DrafterContext
from specdec.drafters.picker import Picker
from specdec.heads.eagle3 import Eagle3
from specdec.heads.steps import StepDrafter
from specdec.heads.weights import head_of


class PEagleDrafter(StepDrafter):
    """Chains, one forward of the head per round."""

    def __init__(self, context: DrafterContext, *, path: str | None, untrained: bool) -> None:
        head = head_of("peagle", context, path, untrained, mask_token_id=0)
        super().__init__(context, Eagle3(head, context.target))
        self.siblings, self.max_length = CHAIN, head.spec.num_slots
        mask_11 = torch.tensor([[head.spec.mask_token_id]], device=context.device)
        with torch.inference_mode():
            features_11D = self.head.features(head.tensors["mask_hidden"])
            self._mask_11X = self.head.inputs(self.head.embed(mask_11), features_11D)

    @torch.inference_mode()
    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        counts = [gamma if row.length > 1 else 0 for row, gamma in zip(rows, gammas, strict=True)]
        if not any(counts):
            return chosen_chains([[] for _ in rows], self._device)
        new = self._take(rows, [count > 0 for count in counts])
        fed = [n + max(count - 1, 0) for n, count in zip(new.counts, counts, strict=True)]
        inputs_BTX = self.head.inputs(self.head.embed(new.tokens_BT), self.head.features(new.hidden_BTH))
        num_rows, width, _ = inputs_BTX.shape
        known_B1 = to_device(new.counts, self._device)[:, None]
        columns_T = torch.arange(max(fed), device=self._device)
        inputs_BTX = torch.nn.functional.pad(inputs_BTX, (0, 0, 0, max(fed) - width))
        inputs_BTX = torch.where((columns_T < known_B1)[..., None], inputs_BTX, self._mask_11X)
        states_BTD = self._feed([row.index for row in rows], inputs_BTX, fed)
        # Slot g of a row is in the column of its last true entry, and those after it.
        columns_BG = (known_B1 - 1 + torch.arange(max(counts), device=self._device)).clamp(0, max(fed) - 1)
        rows_B1 = torch.arange(num_rows, device=self._device)[:, None]
        logits_BGV, pick = self.head.logits(states_BTD[rows_B1, columns_BG]), Picker(rows)
        tokens = [pick(logits_BGV[:, g]) for g in range(max(counts))]
        return Draft(torch.stack(tokens, dim=1), counts, probs_BGV=pick.probs_BGV)
