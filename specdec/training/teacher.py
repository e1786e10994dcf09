"""What heads learn from: the frozen target's hidden states and logits, computed, or read from a batch that has them.

Shape letters: B rows, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from specdec.training.blocks import Batch


def read_target(target: Any, batch: Batch, start: int) -> tuple[dict[int, Tensor], Tensor]:
    """The target's hidden states by layer (B, T, D), and its logits from column ``start`` on (B, T - start, V).

    From the batch where it has them: the logits are then those of the target's head for the last states.
    """
    with torch.no_grad():
        if batch.hidden_BTLD is not None:
            states = {number: batch.hidden_BTLD[:, :, place] for place, number in enumerate(batch.layers)}
            return states, target.get_output_embeddings()(states[max(states)][:, start:]).float()
        keep = batch.ids_BT.shape[1] - start
        output = target(input_ids=batch.ids_BT, use_cache=False, output_hidden_states=True, logits_to_keep=keep)
        return dict(enumerate(output.hidden_states)), output.logits.float()
