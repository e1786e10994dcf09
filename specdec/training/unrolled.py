"""Masks of training steps that continue from their own outputs, as drafting does."""

from __future__ import annotations

import torch
from torch import Tensor


def unrolled_mask(num_entries: int, step: int, device: torch.device) -> Tensor:
    """(1, 1, T, (step + 1) T) bool: what the entries of an unrolled step attend to in this and earlier steps."""
    entry_T1 = torch.arange(num_entries, device=device)[:, None]
    column_T = torch.arange(num_entries, device=device)
    blocks = [column_T <= entry_T1 - step]
    blocks += [column_T == entry_T1 - step + earlier for earlier in range(1, step + 1)]
    mask_TS = torch.cat(blocks, dim=1)
    mask_TS[:, -num_entries:] |= column_T == entry_T1  # at least themselves: the first entries have no past
    return mask_TS[None, None]
