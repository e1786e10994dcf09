"""KNOWN TO BE BIASED: a number of drafted tokens for the slots whose drawn tokens the draft finds most probable.

A token is then kept because it is what was drawn, so that improbable tokens are verified too rarely. Kept to show what
the conformance kit finds. Source of the idea: TETRIS (Wu et al. 2025, arXiv 2502.15197), where drafts are chosen.
"""

from __future__ import annotations

import numpy as np
import torch

from specdec.budgets.base import Draft
from specdec.budgets.ranked import RankedBudget
from specdec.budgets.slots import Floats, Slots, on_host
from specdec.core.transfer import to_device
from specdec.verifiers.children import depths_of, padded_parents


class OwnQBudget(RankedBudget):
    """By the product of the drawn tokens' own probabilities; of a tree's level, the best path to it."""

    def scores(self, slots: Slots, survival_BL: Floats, draft: Draft) -> Floats:
        if draft.probs_BGV is None:
            return survival_BL
        parents_BG = padded_parents(draft)
        columns_BG = to_device(parents_BG + 1, draft.tokens_BG.device)
        rows_B1 = torch.arange(len(columns_BG), device=columns_BG.device)[:, None]
        own_BG = on_host(draft, draft.probs_BGV[rows_B1, columns_BG, draft.tokens_BG].float())
        real_BG = np.arange(parents_BG.shape[1]) < np.array(draft.num_drafted)[:, None]
        depths_BG = np.where(real_BG, depths_of(parents_BG), 0)
        scores_BL = np.zeros(slots.nodes_BL.shape)
        above_BC = np.ones((len(parents_BG), parents_BG.shape[1] + 1))
        for level in range(slots.nodes_BL.shape[-1]):
            rows_N, nodes_N = np.nonzero(depths_BG == level + 1)
            above_BC[rows_N, nodes_N + 1] = own_BG[rows_N, nodes_N] * above_BC[rows_N, parents_BG[rows_N, nodes_N] + 1]
            np.maximum.at(scores_BL[:, level], rows_N, above_BC[rows_N, nodes_N + 1])
        return scores_BL
