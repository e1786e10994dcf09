"""Masks of training steps that continue from their own outputs, as drafting does."""

from __future__ import annotations

import torch
from torch import Tensor


def unrolled_mask(num_entries: int, step: int, first: int, device: torch.device) -> Tensor:
    """What an unrolled step attends to in this and earlier steps: (1, 1, T - first, T + step (T - first)) bool.

    Step 0 has T entries, (1, 1, T, T) bool; later ones have those from ``first`` on.
    """
    column_T = torch.arange(num_entries, device=device)
    own = column_T[first if step else 0 :]
    entry_Q1 = own[:, None]
    blocks = [column_T <= entry_Q1 - step]
    blocks += [own == entry_Q1 - step + earlier for earlier in range(1, step + 1)]
    return torch.cat(blocks, dim=1)[None, None]
