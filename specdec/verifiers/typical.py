"""Typical acceptance: keep what the target finds plausible. LOSSY: the output does not have the target's distribution.

Rule: accept x while p(x) > min(epsilon, delta exp(-H(p))), H the entropy in nats; then draw from p. No random number
decides the acceptance. Source: Cai et al. 2024 (Medusa), arXiv 2401.10774. Here for comparison only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.core.round import Draft, Verdict
from specdec.core.sampling import Noise, draw
from specdec.errors import ConfigError
from specdec.verifiers.base import Verifier, descend, parents_of


class TypicalVerifier(Verifier):
    """Biased towards the draft; exact at temperature 0 only."""

    def __init__(self, *, epsilon: float, delta: float) -> None:
        for name, value in (("epsilon", epsilon), ("delta", delta)):
            if not 0 < value <= 1:
                raise ConfigError(f"verifier.{name}={value}: it must be above 0 and at most 1")
        self.epsilon = epsilon
        self.delta = delta

    def verify_sampled(self, draft: Draft, probs_BTV: Tensor, noise: Noise) -> Verdict:
        """Of several plausible siblings the first in draft order is taken."""
        parents = [parents_of(draft, b) for b in range(len(draft.num_drafted))]
        plausible_BTV, tokens = self._plausible(probs_BTV), draft.tokens_BG.tolist()

        def accepts(b: int, child: int, parent: int) -> bool:
            return child < draft.num_candidates[b] and bool(plausible_BTV[b, parent + 1, tokens[b][child]])

        paths = [
            descend(row, [accepts(b, child, parent) for child, parent in enumerate(row)])
            for b, row in enumerate(parents)
        ]
        rows_B = torch.arange(len(paths), device=probs_BTV.device)
        ends_B = torch.tensor([path[-1] + 1 if path else 0 for path in paths], device=probs_BTV.device)
        depths_B = torch.tensor([len(path) for path in paths], device=probs_BTV.device)
        return Verdict(paths, draw(probs_BTV[rows_B, ends_B], noise.draws_BT[rows_B, depths_B]).tolist())

    def _plausible(self, probs_BTV: Tensor) -> Tensor:
        """(B, T, V) bool, on the CPU."""
        entropy_BT1 = torch.special.entr(probs_BTV).sum(-1, keepdim=True)
        # A greedy row's distribution is one-hot: entropy 0, so its own token passes and no other does.
        return (probs_BTV > (self.delta * torch.exp(-entropy_BT1)).clamp(max=self.epsilon)).cpu()
