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

STEPS = 32  # halvings of [1, K]: the root to ten digits; what is missing costs acceptance, never exactness


class SpecTrVerifier(WalkVerifier):
    """Lossless; with one candidate per node it is rejection."""

    judges = (CHAIN, IID)

    def emit(self, site: Site) -> Tensor:
        p_BV, q_BV = site.p_BV, site.q()
        num_B = site.drawn().sum(1).double()
        rho_B = self.division_factor(p_BV, q_BV, num_B, site.tokens_BW.shape[1])
        x_BW = site.tokens_BW.clamp(min=0)
        chance_BW = p_BV.gather(1, x_BW) / (rho_B[:, None] * q_BV.gather(1, x_BW))
        passed_BW = decisions.passes(site.drawn(), site.tests_BW, chance_BW)
        first_BW = passed_BW & (passed_BW.cumsum(1) == 1)
        token_B = torch.where(first_BW, x_BW, 0).sum(1)
        open_B = site.open_B & ~passed_BW.any(1)
        rest_BV = self.residual(p_BV, q_BV, rho_B, num_B)
        return decisions.draws(open_B, decisions.with_mass(rest_BV, rest_BV.sum(1), p_BV), site.draw_B, token_B)

    def residual(self, p_BV: Tensor, q_BV: Tensor, rho_B: Tensor, num_B: Tensor) -> Tensor:
        """(B, V): what is drawn from after ``num_B`` candidates have failed, up to a factor."""
        kept_BV = torch.minimum(p_BV / rho_B[:, None], q_BV)
        beta_B = kept_BV.sum(1)
        share_B = torch.where(beta_B > 0, any_passes(beta_B, num_B) / beta_B, 0.0)
        return (p_BV - share_B[:, None] * kept_BV).clamp(min=0)

    def division_factor(self, p_BV: Tensor, q_BV: Tensor, num_B: Tensor, most: int) -> Tensor:
        """(B): the upper end of the last bracket around the root, where pacc <= rho beta.

        Args:
            num_B: candidates per row. most: the largest of these that is possible, known to the host.
        """
        low_B = torch.ones_like(num_B)
        high_B = num_B.clamp(min=1)
        for _ in range(STEPS if most > 1 else 0):
            middle_B = (low_B + high_B) / 2
            kept_B = torch.minimum(p_BV, middle_B[:, None] * q_BV).sum(1)  # rho beta
            enough_B = any_passes(kept_B / middle_B, num_B) <= kept_B
            high_B = torch.where(enough_B, middle_B, high_B)
            low_B = torch.where(enough_B, low_B, middle_B)
        return high_B


def any_passes(beta_B: Tensor, num_B: Tensor) -> Tensor:
    """pacc: the chance that one of ``num_B`` candidates passes."""
    return 1 - (1 - beta_B).clamp(min=0) ** num_B
