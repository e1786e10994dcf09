"""Standard speculative sampling: each drafted token is tested on its own, from the left.

Rule: accept x with probability min(1, p(x) / q(x)); at the first rejection draw from norm((p - q)+), after full
acceptance from p. Sources: Leviathan et al. 2023, algorithm 1; Chen et al. 2023, algorithm 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.core.round import Draft
from specdec.verifiers.chain import AcceptanceProbs, ChainVerifier, ratios


class RejectionVerifier(ChainVerifier):
    """Lossless: the output has the target's distribution."""

    def acceptance(self, draft: Draft, probs_BTV: Tensor) -> AcceptanceProbs:
        return AcceptanceProbs(ratios(draft, probs_BTV).clamp(max=1), torch.ones_like(probs_BTV[..., 0]))

    def num_accepted(self, passed_BG: Tensor) -> Tensor:
        """Up to the first test that failed."""
        return passed_BG.long().cumprod(1).sum(1)
