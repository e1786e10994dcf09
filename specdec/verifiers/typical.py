"""Typical acceptance: keep what the target finds plausible. LOSSY: the output does not have the target's distribution.

Rule: accept x while p(x) > min(epsilon, delta exp(-H(p))), H the entropy in nats; then draw from p. No random number
decides the acceptance. Source: Cai et al. 2024 (Medusa), arXiv 2401.10774. Here for comparison only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.core.round import Draft, Verdict
from specdec.core.sampling import Noise, draw
from specdec.core.siblings import KINDS
from specdec.core.transfer import to_device
from specdec.errors import ConfigError
from specdec.verifiers.base import Verifier, descend, parents_of


class TypicalVerifier(Verifier):
    """Biased towards the draft; exact at temperature 0 only."""

    judges = KINDS

    def __init__(self, *, epsilon: float, delta: float) -> None:
        for name, value in (("epsilon", epsilon), ("delta", delta)):
            if not 0 < value <= 1:
                raise ConfigError(f"verifier.{name}={value}: it must be above 0 and at most 1")
        self.epsilon = epsilon
        self.delta = delta

    def verify_sampled(self, draft: Draft, probs_BTV: Tensor, noise: Noise) -> Verdict:
        """Of several plausible siblings the first in draft order is taken."""
        parents = [parents_of(draft, b) for b in range(len(draft.num_drafted))]
        plausible = draft.fetch(self._plausible(draft, parents, probs_BTV))
        paths = [
            descend(row, [bool(plausible[b][child]) and child < draft.num_candidates[b] for child in range(len(row))])
            for b, row in enumerate(parents)
        ]
        rows_B = torch.arange(len(paths), device=probs_BTV.device)
        ends_B = to_device([path[-1] + 1 if path else 0 for path in paths], probs_BTV.device)
        depths_B = to_device([len(path) for path in paths], probs_BTV.device)
        return Verdict(paths, draw(probs_BTV[rows_B, ends_B], noise.draws_BT[rows_B, depths_B]).tolist())

    def _plausible(self, draft: Draft, parents: list[list[int]], probs_BTV: Tensor) -> Tensor:
        """(B, G): 1 where a drafted token is plausible after its parent; columns past a row's nodes mean nothing."""
        width, last = draft.tokens_BG.shape[1], probs_BTV.shape[-1] - 1
        after = [[parent + 1 for parent in row] + [0] * (width - len(row)) for row in parents]
        after_BG1 = to_device(after, probs_BTV.device, torch.long)[..., None]
        probs_BG = torch.take_along_dim(probs_BTV, after_BG1, 1).gather(-1, draft.tokens_BG.clamp(max=last)[..., None])
        entropy_BT = torch.special.entr(probs_BTV).sum(-1)
        # A greedy row's distribution is one-hot: entropy 0, so its own token passes and no other does.
        least_BT = (self.delta * torch.exp(-entropy_BT)).clamp(max=self.epsilon)
        return (probs_BG[..., 0] > least_BT.gather(1, after_BG1[..., 0])).long()
