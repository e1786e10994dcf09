"""What the verifiers that compare probabilities share: tests along a chain, then one token from the residual.

Each row has its own draft length; tests past it fail for certain, so nothing else needs to know the lengths. A draft
without probabilities was chosen and not drawn: its distribution is one-hot, which gives "accept with p(x), otherwise
draw from p without x". Shape letters as in specdec.verifiers.base.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.core.round import Draft, Verdict
from specdec.core.sampling import Noise, draw, one_hot, total
from specdec.core.transfer import to_device
from specdec.errors import ContractError
from specdec.verifiers.base import Verifier


@dataclass(frozen=True, slots=True)
class AcceptanceProbs:
    """The probabilities of a round, before any random number is used; float64."""

    accept_BG: Tensor  # that drafted token g passes its test; 0 past the row's draft
    weight_BT: Tensor  # w in the residual norm((w p - q)+) after that many tokens


class ChainVerifier(Verifier, ABC):
    """Independent tests of the drafted tokens, and a residual distribution for the token that ends the round."""

    def verify_sampled(self, draft: Draft, probs_BTV: Tensor, noise: Noise) -> Verdict:
        acceptance = self.acceptance(draft, probs_BTV)
        tau_B = self.num_accepted(noise.tests_BG < acceptance.accept_BG)
        draws_B = noise.draws_BT.gather(1, tau_B[:, None])[:, 0]
        next_B = draw(self.next_probs(draft, probs_BTV, acceptance, tau_B), draws_B)
        decided = draft.fetch(torch.stack([tau_B, next_B], dim=1))
        return Verdict([list(range(tau)) for tau, _ in decided], [token for _, token in decided])

    @abstractmethod
    def acceptance(self, draft: Draft, probs_BTV: Tensor) -> AcceptanceProbs:
        """The probabilities of the round's tests."""

    @abstractmethod
    def num_accepted(self, passed_BG: Tensor) -> Tensor:
        """How many tokens (B) are accepted, given which of the tests were passed."""

    def next_probs(self, draft: Draft, probs_BTV: Tensor, acceptance: AcceptanceProbs, tau_B: Tensor) -> Tensor:
        """(B, V): the distribution after ``tau_B`` accepted tokens: the residual, or p after the whole draft."""
        rows_B = torch.arange(len(tau_B), device=tau_B.device)
        p_BV = probs_BTV[rows_B, tau_B]
        q_BGV = draft_probs(draft, probs_BTV)
        if q_BGV.shape[1] == 0:
            return p_BV
        q_BV = q_BGV[rows_B, tau_B.clamp(max=q_BGV.shape[1] - 1)]
        residual_BV = (acceptance.weight_BT[rows_B, tau_B, None] * p_BV - q_BV).clamp(min=0)
        total_B1 = total(residual_BV)[:, None]
        # An empty residual means p <= q everywhere: they are equal up to rounding, so p is drawn from.
        all_B1 = tau_B[:, None] == lengths(draft, tau_B.device)[:, None]
        return torch.where(all_B1 | (total_B1 <= 0), p_BV, residual_BV / total_B1)


def ratios(draft: Draft, probs_BTV: Tensor) -> Tensor:
    """(B, G): p(x) / q(x) of every drafted token x, and 0 past a row's draft.

    Raises:
        ContractError: the draft is a tree.
    """
    if draft.parents and any(row != list(range(-1, len(row) - 1)) for row in draft.parents):
        if draft.probs_BGV is None:
            able = "verifier=naive"
        elif draft.draws is None:
            able = "verifier=naive, naive_tree, recursive or traversal"
        else:
            able = "verifier=naive, specinfer, naive_tree, spectr, recursive, traversal or gbv"
        raise ContractError(f"this verifier reads chains only, and the draft is a tree: set {able}")
    tokens_BG1 = draft.tokens_BG[..., None]
    ratio_BG = probs_BTV[:, :-1].gather(-1, tokens_BG1)[..., 0]
    if draft.probs_BGV is not None:
        # A token that was drawn has q > 0; the bound only keeps 0 / 0 past a row's draft from being NaN.
        q_BG = draft.probs_BGV.double().gather(-1, tokens_BG1)[..., 0]
        ratio_BG = ratio_BG / q_BG.clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(is_drafted(draft, probs_BTV.device), ratio_BG, 0.0)


def draft_probs(draft: Draft, probs_BTV: Tensor) -> Tensor:
    """(B, G, V) float64: the distribution that each drafted token was drawn from."""
    if draft.probs_BGV is None:
        return one_hot(draft.tokens_BG, probs_BTV.shape[-1])
    return draft.probs_BGV.double()


def lengths(draft: Draft, device: torch.device) -> Tensor:
    """(B): drafted tokens per row."""
    return to_device(draft.num_drafted, device)


def is_drafted(draft: Draft, device: torch.device) -> Tensor:
    """(B, G) bool: which columns hold a drafted token."""
    return torch.arange(draft.tokens_BG.shape[1], device=device) < lengths(draft, device)[:, None]
