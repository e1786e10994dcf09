"""Multi-round rejection: the candidates under a node are tested in drawing order, each against what is left of p.

After each rejection r <- norm((r - Q)+), where Q is the distribution that the candidate was drawn from. For all rules
here r stays proportional to (p - c q)+, with a number c that grows: in round j by Z_j / M_j, where Z_j = sum (p - c q)+
and M_j is the mass of q that was still to be drawn from. (A rejected token has r < Q, so nothing is left of it, and
whether later Q contain it does not matter.) So a round costs one or two passes over the vocabulary.
Z_j is the probability that the first j candidates are rejected. Shape letters as in specdec.verifiers.walk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.verifiers import decisions
from specdec.verifiers.walk import Site


def multi_round(site: Site, *, num_tested: int | None = None, replacement: bool = True) -> Tensor:
    """(R): the first candidate that passes its test, else a token of the residual.

    Args:
        num_tested: candidates that are tested at most; None: all.
        replacement: each candidate was drawn from q (True), or from q without those before it (False).
    """
    p_RV, q_RV, drawn_RW = site.p_RV, site.q(), site.drawn()
    undrawn_RV = q_RV if replacement else q_RV.clone()
    scale_R, rest_mass_R, draft_mass_R = torch.zeros_like(site.draw_R), *[torch.ones_like(site.draw_R)] * 2
    rest_RV, token_R, open_R = p_RV, site.columns_R, site.open_R
    for j in range(site.tokens_RW.shape[1] if num_tested is None else min(site.tokens_RW.shape[1], num_tested)):
        drawn_R = drawn_RW[:, j]
        x_R1 = site.tokens_RW[:, j, None].clamp(min=0)
        q_R1 = q_RV.gather(1, x_R1)
        # 0 / 0 is 0 (q has nothing left), and x / 0 accepts.
        draft_R = torch.where(q_R1[:, 0] > 0, q_R1[:, 0] / draft_mass_R, 0.0)
        chance_R = rest_RV.gather(1, x_R1)[:, 0] / rest_mass_R / draft_R
        passed_R = decisions.passes(open_R & drawn_R, site.tests_RW[:, j], chance_R)
        token_R = torch.where(passed_R, x_R1[:, 0], token_R)
        open_R = open_R & ~passed_R
        if site.on_host and not open_R.any():
            return token_R
        scale_R = scale_R + torch.where(drawn_R & (draft_mass_R > 0), rest_mass_R / draft_mass_R, 0.0)
        rest_RV = (q_RV * -scale_R[:, None]).add_(p_RV).clamp_(min=0)
        rest_mass_R = rest_RV.sum(1)
        if not replacement:
            undrawn_RV.scatter_(1, x_R1, torch.where(drawn_R[:, None], 0.0, undrawn_RV.gather(1, x_R1)))
            draft_mass_R = undrawn_RV.sum(1)
    return decisions.draws(open_R, decisions.with_mass(rest_RV, rest_mass_R, p_RV), site.draw_R, token_R)
