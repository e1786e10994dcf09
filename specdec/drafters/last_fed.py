"""What a forward returned for the last tokens of rows that were fed different numbers of them."""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.core.transfer import to_device


def last_fed(values_BTX: Tensor, counts: list[int], back: int = 0) -> Tensor:
    """(B, X): of each row's last fed token, or of the one ``back`` before it; of any token, if it was fed too few."""
    if min(counts) == values_BTX.shape[1] > back:
        return values_BTX[:, -1 - back]
    device = values_BTX.device
    places_B = (to_device(counts, device) - 1 - back).clamp(min=0)
    return values_BTX[torch.arange(len(counts), device=device), places_B]
