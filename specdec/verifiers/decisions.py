"""The two ways in which a random number decides: it passes a test, or it draws a token.

All verifiers of trees decide here and nowhere else. ``open`` says where the decision counts: rows that have ended are
computed along with the others, because asking which they are would wait for the device.
Shape letters as in specdec.verifiers.base; "..." is any shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.core.sampling import draw


def passes(is_open: Tensor, numbers: Tensor, chances: Tensor) -> Tensor:
    """(...) bool: which open tests are passed. A chance of NaN (0 / 0) fails, one of infinity (x / 0) passes."""
    return is_open & (numbers < chances)


def draws(open_B: Tensor, weights_BV: Tensor, numbers_B: Tensor, otherwise_B: Tensor) -> Tensor:
    """(B): in open rows a token drawn in proportion to the weights, elsewhere ``otherwise_B``."""
    if open_B.device.type == "cpu" and not open_B.all():
        rows_R = open_B.nonzero()[:, 0]
        tokens_B = otherwise_B.clone()
        tokens_B[rows_R] = draw(weights_BV[rows_R], numbers_B[rows_R])
        return tokens_B
    return torch.where(open_B, draw(weights_BV, numbers_B), otherwise_B)


def with_mass(weights_BV: Tensor, total_B: Tensor, p_BV: Tensor) -> Tensor:
    """The residual's weights, or p where nothing is left: there acceptance was certain but for rounding."""
    return torch.where(total_B[:, None] > 0, weights_BV, p_BV)
