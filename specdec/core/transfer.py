"""Copies from the host to a device that the host does not wait for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def to_device(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Python numbers in lists, or a tensor of the host, as a tensor on ``device``.

    A plain copy to a GPU waits until it has finished all work that was queued before, so that the host cannot queue
    the next forward meanwhile. A copy from pinned memory is queued like any other work.
    """
    if device.type != "cuda":
        return torch.as_tensor(values, dtype=dtype, device=device)
    return torch.as_tensor(values, dtype=dtype).pin_memory().to(device, non_blocking=True)
