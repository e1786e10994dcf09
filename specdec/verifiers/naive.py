"""Naive sampling: the target draws its own token at every node, and the draft is followed while it agrees.

Rule: y ~ p at the node, whatever the draft's distribution; if y is a child, descend, otherwise stop with y. Lossless
for any draft: drawn or chosen, a chain or a tree. One token is drawn per node, not one per path. Because the token at a
position is drawn with that position's own random number, the output is token for token that of plain sampling with the
same seed. Source: NSS in arXiv 2602.16994; SpecInfer (Miao et al. 2023) calls it naive sampling.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.core.round import Draft, Verdict
from specdec.core.sampling import Noise, draw
from specdec.verifiers.base import Verifier, longest_match


class NaiveVerifier(Verifier):
    """Lossless for every draft, and the same tokens as plain sampling."""

    def verify_sampled(self, draft: Draft, probs_BTV: Tensor, noise: Noise) -> Verdict:
        return longest_match(draft, draw(probs_BTV, noise.draws_BT.gather(1, depths(draft, probs_BTV))))


def depths(draft: Draft, like_BTV: Tensor) -> Tensor:
    """(B, T): how many drafted tokens precede each position."""
    num_columns = like_BTV.shape[1]
    depths_BT = torch.arange(num_columns, device=like_BTV.device).repeat(like_BTV.shape[0], 1)
    if draft.parents:
        for b, num_drafted in enumerate(draft.num_drafted):
            deep = [len(draft.path(b, node)) for node in range(num_drafted)]
            depths_BT[b, 1 : num_drafted + 1] = torch.tensor(deep, dtype=torch.long, device=like_BTV.device)
    return depths_BT
