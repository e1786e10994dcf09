"""What the verifiers that weigh the draft's probabilities share: tests along a chain, then one token from what is left.

Each row has its own draft length; tests behind it fail for certain, so nothing else needs to know the lengths. A draft
without probabilities was chosen and not drawn: its law is one-hot, which gives "accept with p(x), otherwise p without
x". Shape letters as in specdec.verifiers.base.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.core.round import Draft, Verdict
from specdec.core.sampling import Noise, draw, one_hot
from specdec.errors import ContractError
from specdec.verifiers.base import Verifier, longest_match


@dataclass(frozen=True, slots=True)
class Acceptance:
    """The chances of a round, before any random number is looked at; float64."""

    accept_BG: Tensor  # probability that drafted token g passes its test; 0 behind the row's draft
    weight_BT: Tensor  # what the target's law weighs against the draft's in the residual, after that many tokens


class ChainVerifier(Verifier):
    """Independent tests of the drafted tokens, and a residual law for the token that ends the round."""

    chains_only = True

    def verify(self, draft: Draft, logits_BTV: Tensor) -> Verdict:
        """At temperature 0 the rule becomes the longest match."""
        return longest_match(draft, logits_BTV.argmax(-1))

    def verify_sampled(self, draft: Draft, probs_BTV: Tensor, noise: Noise) -> Verdict:
        """See the contract."""
        acceptance = self.acceptance(draft, probs_BTV)
        tau_B = self.num_accepted(noise.tests_BG < acceptance.accept_BG)
        draws_B = noise.draws_BT.gather(1, tau_B[:, None])[:, 0]
        next_B = draw(self.next_law(draft, probs_BTV, acceptance, tau_B), draws_B)
        taus, next_tokens = torch.stack([tau_B, next_B]).tolist()  # the round's one wait for the device
        return Verdict([list(range(tau)) for tau in taus], next_tokens)

    @abstractmethod
    def acceptance(self, draft: Draft, probs_BTV: Tensor) -> Acceptance:
        """The chances of the round's tests."""

    @abstractmethod
    def num_accepted(self, passed_BG: Tensor) -> Tensor:
        """How many tokens (B) are accepted, given which of the tests were passed."""

    def next_law(self, draft: Draft, probs_BTV: Tensor, acceptance: Acceptance, tau_B: Tensor) -> Tensor:
        """(B, V): the law of the token after ``tau_B`` accepted ones: the residual, or p after the whole draft."""
        rows_B = torch.arange(len(tau_B), device=tau_B.device)
        p_BV = probs_BTV[rows_B, tau_B]
        q_BGV = draft_law(draft, probs_BTV)
        if q_BGV.shape[1] == 0:
            return p_BV
        q_BV = q_BGV[rows_B, tau_B.clamp(max=q_BGV.shape[1] - 1)]
        residual_BV = (acceptance.weight_BT[rows_B, tau_B, None] * p_BV - q_BV).clamp(min=0)
        total_B1 = residual_BV.sum(-1, keepdim=True)
        # Where nothing is left, p <= q everywhere: the two are equal but for rounding, and p is what is right.
        all_B1 = tau_B[:, None] == lengths(draft, tau_B.device)[:, None]
        return torch.where(all_B1 | (total_B1 <= 0), p_BV, residual_BV / total_B1)


def ratios(draft: Draft, probs_BTV: Tensor) -> Tensor:
    """(B, G): p(x) / q(x) of every drafted token x, and 0 behind a row's draft.

    Raises:
        ContractError: the draft is a tree.
    """
    if draft.parents and any(row != list(range(-1, len(row) - 1)) for row in draft.parents):
        raise ContractError("this verifier reads chains only: set verifier=naive (or greedy) for a drafter of trees")
    tokens_BG1 = draft.tokens_BG[..., None]
    ratio_BG = probs_BTV[:, :-1].gather(-1, tokens_BG1)[..., 0]
    if draft.probs_BGV is not None:
        # A token that was really drawn has q > 0; the bound only keeps 0 / 0 behind a row's draft from being NaN.
        q_BG = draft.probs_BGV.double().gather(-1, tokens_BG1)[..., 0]
        ratio_BG = ratio_BG / q_BG.clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(exists(draft, probs_BTV.device), ratio_BG, 0.0)


def draft_law(draft: Draft, probs_BTV: Tensor) -> Tensor:
    """(B, G, V) float64: the law that each drafted token came from."""
    if draft.probs_BGV is None:
        return one_hot(draft.tokens_BG, probs_BTV.shape[-1])
    return draft.probs_BGV.double()


def lengths(draft: Draft, device: torch.device) -> Tensor:
    """(B): drafted tokens per row."""
    return torch.tensor(draft.num_drafted, device=device)


def exists(draft: Draft, device: torch.device) -> Tensor:
    """(B, G) bool: which columns hold a drafted token."""
    return torch.arange(draft.tokens_BG.shape[1], device=device) < lengths(draft, device)[:, None]
