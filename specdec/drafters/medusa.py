"""Medusa heads as train.py trains them beside a target; `specdec.heads.medusa` drafts with them.

Source: Cai et al. 2024, arXiv 2401.10774, Medusa-1 (a residual block and a projection per head).
Shape letters: G heads, D hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specdec.drafters.trained import plain_head


class MedusaHeads(nn.Module):
    """G heads; before training each gives the logits of the target's own head for the same hidden state."""

    def __init__(self, num_heads: int, head: nn.Linear) -> None:
        super().__init__()
        vocab_size, hidden_size = plain_head(head).weight.shape
        self.blocks = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(num_heads))
        self.heads = nn.ModuleList(nn.Linear(hidden_size, vocab_size, bias=False) for _ in range(num_heads))
        for block, projection in zip(self.blocks, self.heads, strict=True):
            nn.init.zeros_(block.weight)  # type: ignore[arg-type]
            nn.init.zeros_(block.bias)  # type: ignore[arg-type]
            projection.weight.data.copy_(head.weight.data)  # type: ignore[operator, union-attr]

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits (..., G, V) of hidden states (..., D)."""
        parts = zip(self.blocks, self.heads, strict=True)
        return torch.stack([head(hidden + nn.functional.silu(block(hidden))) for block, head in parts], dim=-2)
