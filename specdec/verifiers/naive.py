"""Naive sampling: the target draws its own token at every node, and the draft is followed while it agrees.

Rule: y ~ p at the node, whatever the draft's distribution; if y is a child, descend, otherwise stop with y. Lossless
for any draft: drawn or chosen, a chain or a tree. One token is drawn per node, not one per path. Because the token at a
position is drawn with that position's own random number, the output is token for token that of plain sampling with the
same seed. Source: NSS in arXiv 2602.16994; SpecInfer (Miao et al. 2023) calls it naive sampling.
"""

from __future__ import annotations

from torch import Tensor

from specdec.core.round import Draft, Verdict
from specdec.core.sampling import Noise, draw
from specdec.core.siblings import KINDS
from specdec.core.transfer import to_device
from specdec.verifiers.base import Verifier, longest_match


class NaiveVerifier(Verifier):
    """Lossless for every draft, and the same tokens as plain sampling."""

    judges = KINDS

    def verify_sampled(self, draft: Draft, probs_BTV: Tensor, noise: Noise) -> Verdict:
        return longest_match(draft, draw(probs_BTV, noise.draws_BT.gather(1, depths(draft, probs_BTV))))


def depths(draft: Draft, like_BTV: Tensor) -> Tensor:
    """(B, T): how many drafted tokens precede each position."""
    num_rows, num_columns = like_BTV.shape[:2]
    chain = list(range(num_columns))
    if not draft.parents:
        return to_device([chain] * num_rows, like_BTV.device)
    deep = [[0, *(len(draft.path(b, node)) for node in range(count))] for b, count in enumerate(draft.num_drafted)]
    return to_device([row + chain[len(row) :] for row in deep], like_BTV.device)
