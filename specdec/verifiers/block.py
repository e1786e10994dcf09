"""Block verification: the draft is tested as a whole, so that surplus probability of early tokens helps later ones.

Rule, with w_0 = 1 and w_i = min(1, w_{i-1} p(x_i) / q(x_i)): token i passes its test with probability h_i, where
s_i = sum_v (w_i p(v | x_<=i) - q(v | x_<=i))+ and h_i = s_i / (s_i + 1 - w_i), but h = w at the row's last token. The
accepted length tau is the last i that passes; the next token is drawn from norm((w_tau p - q)+), or p after the whole
draft. The minimum is of the running product, and acceptance goes by h: with w in its place the output would be biased.
Source: Sun et al. 2024, arXiv 2403.10444, algorithm 2. Never accepts fewer tokens than rejection, on average.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.core.round import Draft
from specdec.core.sampling import total
from specdec.verifiers.chain import AcceptanceProbs, ChainVerifier, draft_probs, is_drafted, lengths, ratios


class BlockVerifier(ChainVerifier):
    """Lossless: the output has the target's distribution."""

    def acceptance(self, draft: Draft, probs_BTV: Tensor) -> AcceptanceProbs:
        weight_BT = running_weight(ratios(draft, probs_BTV))
        weight_BG = weight_BT[:, 1:]
        q_BGV = draft_probs(draft, probs_BTV)
        # s belongs to the position after token i, whose draft distribution is that of token i + 1.
        surplus_BG = torch.zeros_like(weight_BG)
        surplus_BG[:, :-1] = total((weight_BG[:, :-1, None] * probs_BTV[:, 1:-1] - q_BGV[:, 1:]).clamp(min=0))
        mass_BG = surplus_BG + 1 - weight_BG
        # 0 / 0: there w = 1 and p = q, so the token is accepted for certain.
        accept_BG = torch.where(mass_BG > 0, surplus_BG / mass_BG, 1.0)
        num_B1 = lengths(draft, weight_BG.device)[:, None]
        last_BG = torch.arange(weight_BG.shape[1], device=weight_BG.device) == num_B1 - 1
        accept_BG = torch.where(last_BG, weight_BG, accept_BG)
        return AcceptanceProbs(torch.where(is_drafted(draft, accept_BG.device), accept_BG, 0.0), weight_BT)

    def num_accepted(self, passed_BG: Tensor) -> Tensor:
        """Up to the last test that was passed, whether or not those before it were."""
        places_G = torch.arange(1, passed_BG.shape[1] + 1, device=passed_BG.device)
        # The column of zeros is the answer where no test was passed, or there is none.
        return torch.nn.functional.pad(passed_BG * places_G, (1, 0)).amax(1)


def running_weight(ratio_BG: Tensor) -> Tensor:
    """(B, T): w_0 = 1 and w_i = min(1, w_{i-1} ratio_i)."""
    weights = [torch.ones_like(ratio_BG.sum(1))]
    for ratio_B in ratio_BG.unbind(1):
        weights.append((weights[-1] * ratio_B).clamp(max=1))
    return torch.stack(weights, dim=1)
