"""SpecTr's K-SEQ: a node's K independent candidates are tested alike, at a price that makes the chances add up.

With beta(rho) = sum_v min(p(v) / rho, q(v)) and pacc(rho) = 1 - (1 - beta(rho))^K, the division factor rho is the root
of pacc = rho beta on [1, K], K the node's own number of candidates.
Rule: accept the first candidate x that passes with probability min(1, p(x) / (rho q(x))); if none does, draw from
norm((p - min(p / rho, q) pacc / beta)+), and descend if that is among the children. Lossless for every rho from the
root to K (there pacc <= rho beta, so the residual is nowhere negative). The root passes most tests; where the residual
may hit another child, a larger factor may accept more in all.
Source: Sun et al. 2023, arXiv 2310.15141, algorithm 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.core.siblings import CHAIN, IID
from specdec.verifiers import decisions
from specdec.verifiers.walk import Site, WalkVerifier

STEPS = 24  # halvings of [1, K]: the root to seven digits; what is missing costs acceptance, never exactness


class SpecTrVerifier(WalkVerifier):
    """Lossless; with one candidate per node it is rejection."""

    judges = (CHAIN, IID)

    def emit(self, site: Site) -> Tensor:
        p_RV, q_RV = site.p_RV, site.q()
        num_R = site.drawn().sum(1).double()
        rho_R = self.division_factor(p_RV, q_RV, num_R, site.tokens_RW.shape[1])
        x_RW = site.tokens_RW.clamp(min=0)
        chance_RW = p_RV.gather(1, x_RW) / (rho_R[:, None] * q_RV.gather(1, x_RW))
        passed_RW = decisions.passes(site.drawn(), site.tests_RW, chance_RW)
        first_RW = passed_RW & (passed_RW.cumsum(1) == 1)
        token_R = torch.where(first_RW, x_RW, 0).sum(1)
        open_R = site.open_R & ~passed_RW.any(1)
        rest_RV = self.residual(p_RV, q_RV, rho_R, num_R)
        return decisions.draws(open_R, decisions.with_mass(rest_RV, rest_RV.sum(1), p_RV), site.draw_R, token_R)

    def residual(self, p_RV: Tensor, q_RV: Tensor, rho_R: Tensor, num_R: Tensor) -> Tensor:
        """(R, V): what is drawn from after ``num_R`` candidates have failed, up to a factor."""
        kept_RV = torch.minimum(p_RV / rho_R[:, None], q_RV)
        beta_R = kept_RV.sum(1)
        share_R = torch.where(beta_R > 0, any_passes(beta_R, num_R) / beta_R, 0.0)
        return (p_RV - share_R[:, None] * kept_RV).clamp(min=0)

    def division_factor(self, p_RV: Tensor, q_RV: Tensor, num_R: Tensor, most: int) -> Tensor:
        """(R): the upper end of the last bracket around the root, where pacc <= rho beta.

        Args:
            num_R: candidates per row. most: the largest of these that is possible, known to the host.
        """
        low_R = torch.ones_like(num_R)
        high_R = num_R.clamp(min=1)
        space_RV = torch.empty_like(q_RV)
        for _ in range(STEPS if most > 1 else 0):
            middle_R = (low_R + high_R) / 2
            torch.mul(q_RV, middle_R[:, None], out=space_RV)
            kept_R = torch.minimum(p_RV, space_RV, out=space_RV).sum(1)  # rho beta
            enough_R = any_passes(kept_R / middle_R, num_R) <= kept_R
            high_R = torch.where(enough_R, middle_R, high_R)
            low_R = torch.where(enough_R, low_R, middle_R)
        return high_R


def any_passes(beta_R: Tensor, num_R: Tensor) -> Tensor:
    """pacc: the chance that one of ``num_R`` candidates passes."""
    return 1 - (1 - beta_R).clamp(min=0) ** num_R
