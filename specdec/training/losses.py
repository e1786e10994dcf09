"""Distillation losses: pure functions of logits with one value per position, and means over chosen positions.

Shape letters: X positions (any leading shape), V vocabulary, K tokens kept of a distribution. All in nats. A
temperature softens both distributions, and its square scales the gradient back (Hinton et al. 2015, arXiv 1503.02531).
Sources: forward and reverse KL for drafts, Zhou et al. 2023 (DistillSpec, arXiv 2310.08461); total variation is one
minus the chance that rejection sampling accepts (Leviathan et al. 2023, corollary 3.6).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor, float], Tensor]


def cross_entropy(draft_XV: Tensor, tokens_X: Tensor) -> Tensor:
    """-log q(token), per position (X)."""
    return -draft_XV.log_softmax(-1).gather(-1, tokens_X[..., None])[..., 0]


def forward_kl(draft_XV: Tensor, target_XV: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p || q) of the target's distribution p and the draft's q, per position (X)."""
    log_p, log_q = _log_probs(draft_XV, target_XV, temperature)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1)


def reverse_kl(draft_XV: Tensor, target_XV: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(q || p), per position (X): penalises draft tokens that the target finds improbable."""
    log_p, log_q = _log_probs(draft_XV, target_XV, temperature)
    return temperature**2 * (log_q.exp() * (log_q - log_p)).sum(-1)


def total_variation(draft_XV: Tensor, target_XV: Tensor, temperature: float = 1.0) -> Tensor:
    """(1/2) sum |p - q|, per position (X), from 0 to 1; scaled by the squared temperature like the others."""
    log_p, log_q = _log_probs(draft_XV, target_XV, temperature)
    return temperature**2 * 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def kept_forward_kl(draft_XV: Tensor, top_ids_XK: Tensor, top_logps_XK: Tensor) -> Tensor:
    """Forward KL over the K largest entries of p, the only ones that are known, per position (X)."""
    log_q_XK = draft_XV.log_softmax(-1).gather(-1, top_ids_XK)
    return (top_logps_XK.exp() * (top_logps_XK - log_q_XK)).sum(-1)


SOFT: dict[str, Loss] = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "tv": total_variation}
"""Losses between two distributions, by the name of their weight in the config."""


def masked_mean(values_X: Tensor, mask_X: Tensor) -> Tensor:
    """The mean over the positions where the mask is true; 0 if there are none."""
    return torch.where(mask_X, values_X, 0.0).sum() / mask_X.sum().clamp(min=1)


def output_mask(prompt_lengths: list[int], lengths: list[int], width: int, count_prompt: bool = False) -> Tensor:
    """(B, T) bool: which tokens of right-padded rows are to be predicted; never padding or a row's first token.

    Args:
        prompt_lengths: tokens of each row's prompt, which count only if ``count_prompt``.
        lengths: tokens of each row, prompt and output, without padding.
        width: T.
    """
    columns_T = torch.arange(width)
    first_B1 = torch.tensor([1 if count_prompt else max(count, 1) for count in prompt_lengths])[:, None]
    return (columns_T >= first_B1) & (columns_T < torch.tensor(lengths)[:, None])


def _log_probs(draft_XV: Tensor, target_XV: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return (target_XV / temperature).log_softmax(-1), (draft_XV / temperature).log_softmax(-1)
