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
    """(B): the first candidate that passes its test, else a token of the residual.

    Args:
        num_tested: candidates that are tested at most; None: all.
        replacement: each candidate was drawn from q (True), or from q without those before it (False).
    """
    p_BV, q_BV, drawn_BW = site.p_BV, site.q(), site.drawn()
    undrawn_BV = q_BV if replacement else q_BV.clone()
    scale_B, rest_mass_B, draft_mass_B = torch.zeros_like(site.draw_B), *[torch.ones_like(site.draw_B)] * 2
    rest_BV, token_B, open_B = p_BV, site.columns_B, site.open_B
    for j in range(site.tokens_BW.shape[1] if num_tested is None else min(site.tokens_BW.shape[1], num_tested)):
        drawn_B = drawn_BW[:, j]
        x_B1 = site.tokens_BW[:, j, None].clamp(min=0)
        q_B1 = q_BV.gather(1, x_B1)
        # 0 / 0 is 0 (q has nothing left), and x / 0 accepts.
        draft_B = torch.where(q_B1[:, 0] > 0, q_B1[:, 0] / draft_mass_B, 0.0)
        chance_B = rest_BV.gather(1, x_B1)[:, 0] / rest_mass_B / draft_B
        passed_B = decisions.passes(open_B & drawn_B, site.tests_BW[:, j], chance_B)
        token_B = torch.where(passed_B, x_B1[:, 0], token_B)
        open_B = open_B & ~passed_B
        if site.on_host and not open_B.any():
            return token_B
        scale_B = scale_B + torch.where(drawn_B & (draft_mass_B > 0), rest_mass_B / draft_mass_B, 0.0)
        rest_BV = (p_BV - scale_B[:, None] * q_BV).clamp(min=0)
        rest_mass_B = rest_BV.sum(1)
        if not replacement:
            undrawn_BV.scatter_(1, x_B1, torch.where(drawn_B[:, None], 0.0, undrawn_BV.gather(1, x_B1)))
            draft_mass_B = undrawn_BV.sum(1)
    return decisions.draws(open_B, decisions.with_mass(rest_BV, rest_mass_B, p_BV), site.draw_B, token_B)
