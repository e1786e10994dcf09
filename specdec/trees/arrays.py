"""Arrays on the host that describe the trees of all rows: from tensors in one fetch, and as lists.

Shape letters: B rows, T children of all levels, G drafted nodes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]


def on_host(*parts: Tensor | None) -> list[Array | None]:
    """Tensors (B, ...) as arrays; those on the device come together."""
    away = [part for part in parts if part is not None and part.device.type != "cpu"]
    fetched: list[Array] = []
    if away:
        whole = torch.cat([part.view(torch.int64) if part.is_floating_point() else part.long() for part in away], dim=1)
        fetched = np.split(whole.cpu().numpy(), np.cumsum([part.shape[1] for part in away])[:-1], axis=1)
    found: list[Array | None] = []
    for part in parts:
        if part is None or part.device.type == "cpu":
            found.append(None if part is None else part.numpy())
        else:
            array = fetched.pop(0)
            of_kind = {torch.bool: lambda a: a.astype(bool), torch.float64: lambda a: a.view(np.float64)}
            found.append(of_kind.get(part.dtype, lambda a: a)(array))
    return found


def first_places(chosen_BT: Array, count: int) -> Array:
    """(B, count): each row's chosen places in order, then others."""
    return (~chosen_BT).argsort(axis=1, kind="stable")[:, :count]


def ragged(values_BT: Array, order_BG: Array, counts_B: Array) -> list[list[int]]:
    """Each row's values at its first places, as lists."""
    rows = np.take_along_axis(values_BT, order_BG, 1).tolist()
    return [row[:count] for row, count in zip(rows, counts_B.tolist(), strict=True)]
