"""A matrix product with weights in the layout that is fastest on the machine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

PACK_FROM_WEIGHTS = 1 << 20
"""Smaller matrices are not packed: the packed product has a fixed cost of about 30 us per call."""
PACK_FOR_ROWS = 16
"""Rows of the product that the packed layout is chosen for."""


class Linear:
    """x W^T + b, with W packed for oneDNN where that pays: float32 on a CPU, and a large W.

    Packing keeps a second copy of the weight (``packed_bytes``).
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, *, may_pack: bool = True) -> None:
        self.weight_OI = weight_OI.detach()
        self.bias_O = None if bias_O is None else bias_O.detach()
        self._packed = pack(self.weight_OI) if may_pack else None
        self.copied = self._packed is not None  # whether later changes of the model's weights have no effect here

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed copy."""
        return 0 if self._packed is None else self.weight_OI.numel() * self.weight_OI.element_size()

    def __call__(self, x_MI: Tensor) -> Tensor:
        """(M, I) -> (M, O)."""
        if self._packed is None:
            return linear(x_MI, self.weight_OI, self.bias_O)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x_MI, self._packed, self.bias_O, "none", [], "")
        return product

    def added_to(self, residual_MO: Tensor, x_MI: Tensor) -> Tensor:
        """residual + x W^T + b, in one call where the plain product is used."""
        if self._packed is None and self.bias_O is None:
            return torch.addmm(residual_MO, x_MI, self.weight_OI.t())
        return residual_MO + self(x_MI)


def pack(weight_OI: Tensor) -> Tensor | None:
    """The weight in oneDNN's blocked layout, or None if that does not pay."""
    fits = weight_OI.device.type == "cpu" and weight_OI.dtype == torch.float32
    if not fits or weight_OI.numel() < PACK_FROM_WEIGHTS or not torch.backends.mkldnn.is_available():
        return None
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_OI, PACK_FOR_ROWS)
    return packed


def joined(*parts: nn.Linear, may_pack: bool = True) -> Linear:
    """Several products of one input as a single product. The parts' weights become views of the joined ones."""
    weight_OI = _joined_views([part.weight for part in parts])
    biases = [part.bias for part in parts if part.bias is not None]
    if 0 < len(biases) < len(parts):  # zeros for a part without a bias
        product = Linear(weight_OI, torch.cat([_bias(part) for part in parts]), may_pack=may_pack)
        product.copied = True
        return product
    return Linear(weight_OI, _joined_views(biases) if biases else None, may_pack=may_pack)


def _bias(part: nn.Linear) -> Tensor:
    bias: Tensor | None = part.bias
    return part.weight.new_zeros(part.out_features) if bias is None else bias.detach()


def _joined_views(parts: Sequence[Tensor]) -> Tensor:
    """The parts concatenated along their first dimension; each becomes a view of the result."""
    whole = _already_joined(parts)
    if whole is None:
        whole = torch.cat([part.detach() for part in parts])
        start = 0
        for part in parts:
            part.data = whole[start : start + len(part)]
            start += len(part)
    return whole


def _already_joined(parts: Sequence[Tensor]) -> Tensor | None:
    """The joined tensor of parts that were joined before; None if they were not."""
    first = parts[0].detach()
    start = first.storage_offset()
    for part in parts:
        same = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or part.storage_offset() != start or not part.is_contiguous():
            return None
        start += part.numel()
    return first.as_strided((sum(map(len, parts)), *first.shape[1:]), first.stride())
