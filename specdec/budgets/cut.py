"""Cutting drafts at a depth of each row. Levels are cut whole, so that siblings stay what they were drawn as.

Shape letters: B rows, G nodes, H kept nodes, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from specdec.core.round import Draft
from specdec.core.transfer import to_device
from specdec.verifiers.children import depths_of, padded_parents


def cut(draft: Draft, depths: list[int]) -> Draft:
    """The draft without the nodes of row b that are deeper than ``depths[b]``."""
    if draft.parents is None:
        counts = [min(count, depth) for count, depth in zip(draft.num_drafted, depths, strict=True)]
        return _columns(draft, counts, draft.num_drafted)
    parents_BG = padded_parents(draft)
    counts_B1 = np.array(draft.num_drafted)[:, None]
    depths_BG = depths_of(parents_BG)
    real_BG = np.arange(parents_BG.shape[1]) < counts_B1
    kept_BG = real_BG & (depths_BG <= np.array(depths)[:, None])
    before = np.where(real_BG, depths_BG, 0).max(1, initial=0).tolist()
    kept_B = kept_BG.sum(1)
    counts = kept_B.tolist()
    if (kept_BG == (np.arange(parents_BG.shape[1]) < kept_B[:, None])).all():  # by level, as trees grow
        shorter = _columns(draft, counts, before)
        shorter.parents = [row[:count] for row, count in zip(draft.parents, counts, strict=True)]
        shorter.draws = _kept_draws(draft, kept_BG, None)
        return shorter
    order_BH = (~kept_BG).argsort(1, kind="stable")[:, : max(counts, default=0)]
    names_BG = np.where(kept_BG, kept_BG.cumsum(1) - 1, -1)
    parents_BH = np.take_along_axis(parents_BG, order_BH, 1)
    parents_BH = np.where(parents_BH < 0, -1, np.take_along_axis(names_BG, parents_BH.clip(0), 1))
    at_BH = to_device(order_BH, draft.tokens_BG.device)
    columns_BH = torch.nn.functional.pad(at_BH + 1, (1, 0))[:, :-1]  # column 0, then that of each node but the last
    return replace(
        draft,
        tokens_BG=draft.tokens_BG.gather(1, at_BH),
        num_drafted=counts,
        parents=[row[:count] for row, count in zip(parents_BH.tolist(), counts, strict=True)],
        probs_BGV=_at(draft.probs_BGV, columns_BH),
        certainty_BG2=_at(draft.certainty_BG2, columns_BH),
        chances_BG=_at(draft.chances_BG, columns_BH),
        draws=_kept_draws(draft, kept_BG, names_BG),
        cut_from=before,
    )


def _columns(draft: Draft, counts: list[int], before: list[int]) -> Draft:
    """The first columns of everything."""
    width = max(counts, default=0)
    return replace(
        draft,
        tokens_BG=draft.tokens_BG[:, :width],
        num_drafted=counts,
        probs_BGV=None if draft.probs_BGV is None else draft.probs_BGV[:, :width],
        certainty_BG2=None if draft.certainty_BG2 is None else draft.certainty_BG2[:, :width],
        chances_BG=None if draft.chances_BG is None else draft.chances_BG[:, :width],
        cut_from=before,
    )


def _kept_draws(draft: Draft, kept_BG: np.ndarray, names_BG: np.ndarray | None) -> list[list[int]] | None:
    """The draws of kept nodes, by their new numbers."""
    if draft.draws is None:
        return None
    return [
        [int(node if names_BG is None else names_BG[b, node]) for node in row if kept_BG[b, node]]
        for b, row in enumerate(draft.draws)
    ]


def _at(values_BGX: Tensor | None, columns_BH: Tensor) -> Tensor | None:
    if values_BGX is None:
        return None
    rows_B1 = torch.arange(len(columns_BH), device=columns_BH.device)[:, None]
    return values_BGX[rows_B1, columns_BH.clamp(max=values_BGX.shape[1] - 1)]
