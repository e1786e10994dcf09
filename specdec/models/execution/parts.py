"""Attention over disjoint parts of the columns, merged by the log of each part's sum of exponentials.

Softmax over all columns weighs part j by exp(lse_j) / sum exp(lse_i), so the parts are computed apart: each level of
columns that rows share in one product over the queries of all of them, each row's own as ever.
Source: Hydragen, arXiv 2402.05099. Scores, weights and sums are float32 or better, and an lse is float64: the rounding
of a float32 lse of 80 would change shares by 4e-6.

Shape letters: B rows, K key heads, Q queries of a row and key head, E head size, S columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.models.shared import SharedColumns

Part = tuple[Tensor, Tensor]
"""Outputs (..., E) of an attention over some columns, and the log of the sum of exponentials of the scores (...).

It is -inf where no column is seen, and the output is 0 there."""


def attend_part(q_BKQE: Tensor, keys_BKSE: Tensor, values_BKSE: Tensor, mask_B1QS: Tensor, scale: float) -> Part:
    """Attention over one part of the columns; ``mask_B1QS`` is added to the scores, -inf where a column is hidden."""
    wide = _wide(q_BKQE.dtype)
    scores_BKQS = (q_BKQE.to(wide) @ keys_BKSE.to(wide).transpose(-1, -2)).mul_(scale).add_(mask_B1QS)
    top_BKQ = scores_BKQS.amax(dim=-1).nan_to_num_(neginf=0.0)
    weights_BKQS = scores_BKQS.sub_(top_BKQ[..., None]).exp_()
    total_BKQ = weights_BKQS.sum(dim=-1)  # at least 1 if a column is seen
    mixed_BKQE = (weights_BKQS @ values_BKSE.to(wide)).div_(total_BKQ.clamp(min=1.0)[..., None])
    return mixed_BKQE, top_BKQ.double() + total_BKQ.double().log()


def merge(first: Part, second: Part) -> Part:
    """The attention over the columns of both parts. A part without columns (lse = -inf) changes nothing."""
    (first_XE, first_X), (second_XE, second_X) = first, second
    lse_X = torch.logaddexp(first_X, second_X)
    finite_X = lse_X.nan_to_num(neginf=0.0)
    first_share, second_share = ((x - finite_X).exp()[..., None].to(first_XE.dtype) for x in (first_X, second_X))
    return first_XE * first_share + second_XE * second_share, lse_X


def attend_shared(
    q_BKQE: Tensor,
    own: tuple[Tensor, Tensor],
    mask_B1QS: Tensor,
    scale: float,
    shared: SharedColumns,
    layer: int,
) -> Tensor:
    """Attention (B, K, Q, E) over what rows share, and over their own keys and values.

    Args:
        own: keys and values (B, K, S, E).
        mask_B1QS: added to the scores of shared columns, then of the rows' own; of ``part_levels``.
    """
    _, K, Q, E = q_BKQE.shape
    whole = attend_part(q_BKQE, *own, mask_B1QS[..., shared.width :], scale)
    for number in range(len(shared.storages)):
        rows = shared.readers(number)
        keys_KSE, values_KSE = (shared.columns(number, 2 * layer + i, part)[0] for i, part in enumerate(own))
        mask_1XS = mask_B1QS[rows, 0, :, shared.positions(number)].flatten(0, 1)[None]
        folded_KXE = q_BKQE[rows].transpose(0, 1).reshape(K, -1, E)
        part = attend_part(folded_KXE, keys_KSE, values_KSE, mask_1XS, scale)
        mixed, lse = (x.unflatten(1, (-1, Q)).transpose(0, 1) for x in part)
        for into_XX, merged_XX in zip(whole, merge((whole[0][rows], whole[1][rows]), (mixed, lse)), strict=True):
            into_XX[rows] = merged_XX
    return whole[0].to(q_BKQE.dtype)


def part_levels(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """What is added to the score of a visible column, and of a hidden one: one that gives a part no weight."""
    shown = torch.zeros((), dtype=_wide(dtype), device=device)
    return shown, torch.full_like(shown, float("-inf"))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
