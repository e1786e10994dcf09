"""Training of P-EAGLE: the layers of EAGLE-3, which draft all tokens in one forward.

After an anchor's entry come slots of a mask token and a learned vector in place of the hidden states; a slot sees the
entries up to its anchor's and the slots before it. Blocks begin at anchors that are drawn for every batch, whole; the
paper instead keeps a falling share of the slots of every depth at all places.
Source: P-EAGLE, arXiv 2602.01469, as `speculators` has it.
Shape letters: B rows, T tokens, A anchors, K predicted tokens, S entries and slots, D hidden size, H hidden states that
are read, V vocabulary, N tokens that can be drafted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from specdec.models.causal_lm import CausalLM
from specdec.training.anchors import Anchors, at, slots_mask, teacher
from specdec.training.blocks import Batch
from specdec.training.config import HeadsConfig, LossConfig
from specdec.training.dflash import slots_loss
from specdec.training.eagle3 import Eagle3Head
from specdec.training.losses import LossSum
from specdec.training.published import mask_token, save_published
from specdec.training.recompute import recomputed


class PEagleHead(Eagle3Head):
    """EAGLE-3's first layer, ordinary ones after it, and the vector that stands for unknown hidden states."""

    def __init__(self, target: Any, cfg: HeadsConfig) -> None:
        super().__init__(target, cfg.layer_ids, cfg.num_layers)
        self.mask_token_id = mask_token(target)
        self.mask_hidden = nn.Parameter(0.02 * torch.randn(1, 1, self.fc.in_features))

    def forward(self, target: Any, ids_BT: Tensor, hidden_BTH: Tensor, places_BA: Tensor, num_slots: int) -> Tensor:
        """The states (B, A, K, D) of the anchors' entries, and of the slots after them. No anchor is a first token."""
        num_rows, num_entries = len(ids_BT), ids_BT.shape[1] - 1
        ends_BA, num_masks = places_BA - 1, num_slots - 1  # the entry that holds the anchor, and what follows it
        ids_BS = pad(ids_BT[:, 1:], (0, places_BA.shape[1] * num_masks), value=self.mask_token_id)
        with torch.no_grad():
            embeds_BSD = target.get_input_embeddings()(ids_BS)
        unknown_BSD = self.fc(self.mask_hidden).expand(num_rows, ids_BS.shape[1] - num_entries, -1)
        states_BSD = torch.cat([self.fc(hidden_BTH[:, :-1]), unknown_BSD], dim=1)
        columns_T = torch.arange(num_entries, device=ids_BT.device).expand(num_rows, -1)
        after_BAM = ends_BA[..., None] + 1 + torch.arange(num_masks, device=ids_BT.device)
        rotation = self.rotary(states_BSD, torch.cat([columns_T, after_BAM.flatten(1)], dim=1))
        mask_B1SS = self._mask(ends_BA, num_entries, num_masks)[:, None]
        states_BSD, _ = recomputed(self.layers[0], embeds_BSD, states_BSD, rotation, (), mask_B1SS)
        for layer in self.layers[1:]:
            states_BSD = recomputed(layer, states_BSD, attention_mask=mask_B1SS, position_embeddings=rotation)
        slots_BAMD = states_BSD[:, num_entries:].unflatten(1, (places_BA.shape[1], num_masks))
        return torch.cat([at(states_BSD, ends_BA[..., None]), slots_BAMD], dim=2)

    def _mask(self, ends_BA: Tensor, num_entries: int, num_masks: int) -> Tensor:
        """(B, S, S) bool."""
        of_slots = slots_mask(ends_BA + 1, num_entries, num_masks, causal=True)
        of_entries_TT = torch.ones(num_entries, num_entries, dtype=torch.bool, device=ends_BA.device).tril()
        of_entries_TS = pad(of_entries_TT, (0, of_slots.shape[2] - num_entries))
        return torch.cat([of_entries_TS.expand(len(ends_BA), -1, -1), of_slots], dim=1)


def peagle_loss(
    module: PEagleHead, target: Any, batch: Batch, cfg: HeadsConfig, losses: LossConfig, seed: int
) -> LossSum:
    """At every anchor, its entry and the slots after it learn the distributions of the next tokens."""
    anchors = Anchors.drawn(batch, cfg.num_anchors, cfg.num_heads, seed, first=1)  # a first token has no entry
    hidden_BTH, teacher_BAKV = teacher(target, batch, anchors, module.layer_ids)
    states_BAKD = module(target, batch.ids_BT, hidden_BTH, anchors.places_BA, cfg.num_heads)
    return slots_loss(module, module.logits(states_BAKD), teacher_BAKV, batch, anchors, cfg, losses)


def save_peagle(folder: Path, module: PEagleHead, target: CausalLM, cfg: HeadsConfig) -> None:
    """Write the head in the layout of `speculators`, which ``drafter=peagle`` loads."""
    own = {
        "eagle_aux_hidden_state_layer_ids": module.layer_ids,
        "norm_before_residual": False,
        "mask_token_id": module.mask_token_id,
    }
    save_published(folder, "peagle", module, target, own, cfg.num_heads)
