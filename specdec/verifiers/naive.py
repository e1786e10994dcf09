"""Naive sampling: the target draws its own token at every node, and the draft is followed while it agrees.

Rule: y ~ p at the node, whatever the draft's distribution; if y is a child, descend, otherwise stop with y. Lossless
for any draft: drawn or chosen, a chain or a tree. One token is drawn per visited node. Because the token at a
position is drawn with that position's own random number, the output is token for token that of plain sampling with the
same seed. Source: NSS in arXiv 2602.16994; SpecInfer (Miao et al. 2023) calls it naive sampling.
"""

from __future__ import annotations

from torch import Tensor

from specdec.core.siblings import KINDS
from specdec.verifiers import decisions
from specdec.verifiers.walk import Site, WalkVerifier


class NaiveVerifier(WalkVerifier):
    """Lossless for every draft, and the same tokens as plain sampling."""

    judges = KINDS

    def emit(self, site: Site) -> Tensor:
        return decisions.draws(site.open_R, site.p_RV, site.draw_R, site.columns_R)
