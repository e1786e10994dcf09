"""Distillation losses: pure functions of logits with one value per position, and sums over chosen positions.

Shape letters: X positions (any leading shape), V vocabulary, K tokens kept of a distribution. All in nats. A
temperature T softens both distributions and makes gradients smaller: those of KL by T^2, which scales them back (Hinton
et al. 2015, arXiv 1503.02531), those of total variation by T. Logits of the target may be -inf.
Sources: forward and reverse KL for drafts, Zhou et al. 2023 (DistillSpec, arXiv 2310.08461); total variation is one
minus the chance that rejection sampling accepts (Leviathan et al. 2023, corollary 3.6).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.training import TrainingError
from specdec.training.config import LossConfig
from specdec.training.recompute import recomputed

LOWEST = -87.0
"""In place of lower log-probabilities: 0 times -inf would be NaN, and e^-87 is float32's least normal number."""
Loss = Callable[[Tensor, Tensor, float], Tensor]


class LossSum(NamedTuple):
    """What a batch adds to a step: the step's loss is a mean over the positions of all its batches and devices."""

    total: Tensor  # over the positions that count
    num_positions: Tensor | int

    @property
    def mean(self) -> Tensor:
        """The loss of this batch alone; 0 where nothing counts."""
        return self.total / max(1, int(self.num_positions))


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
    """(1/2) sum |p - q|, per position (X), from 0 to 1; scaled by the temperature."""
    log_p, log_q = _log_probs(draft_XV, target_XV, temperature)
    return temperature * 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def kept_forward_kl(draft_XV: Tensor, top_ids_XK: Tensor, top_logps_XK: Tensor) -> Tensor:
    """Forward KL over the K largest entries of p, the only ones that are known, per position (X)."""
    log_q_XK = draft_XV.log_softmax(-1).gather(-1, top_ids_XK)
    return (top_logps_XK.exp() * (top_logps_XK - log_q_XK)).sum(-1)


SOFT: dict[str, Loss] = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "tv": total_variation}
"""Losses between two distributions, by the name of their weight in the config."""


def check_losses(cfg: LossConfig) -> None:
    """Refuse weights from which nothing is learned.

    Raises:
        TrainingError: all of them are 0.
    """
    if not any(getattr(cfg, name) for name in ("ce", "argmax", *SOFT)):
        raise TrainingError("distill: every loss has weight 0; set distill.forward_kl=1 or another")


def weighted_losses(cfg: LossConfig, draft_XV: Tensor, target_XV: Tensor, tokens_X: Tensor) -> Tensor:
    """The sum of all losses with their weights, per position (X)."""
    return recomputed(_weighted_losses, cfg, draft_XV, target_XV, tokens_X)


def kept_losses(
    cfg: LossConfig, draft_XV: Tensor, top_ids_XK: Tensor, top_logps_XK: Tensor, tokens_X: Tensor
) -> Tensor:
    """The losses that need the kept entries of the target's distribution alone, per position (X)."""
    return recomputed(_kept_losses, cfg, draft_XV, top_ids_XK, top_logps_XK, tokens_X)


def _kept_losses(
    cfg: LossConfig, draft_XV: Tensor, top_ids_XK: Tensor, top_logps_XK: Tensor, tokens_X: Tensor
) -> Tensor:
    total = cfg.argmax * cross_entropy(draft_XV, top_ids_XK[:, 0])
    total = total + cfg.ce * cross_entropy(draft_XV, tokens_X)
    return total + cfg.forward_kl * kept_forward_kl(draft_XV, top_ids_XK, top_logps_XK)


def _weighted_losses(cfg: LossConfig, draft_XV: Tensor, target_XV: Tensor, tokens_X: Tensor) -> Tensor:
    total = torch.zeros_like(draft_XV[..., 0])
    if cfg.ce:
        total = total + cfg.ce * cross_entropy(draft_XV, tokens_X)
    if cfg.argmax:
        total = total + cfg.argmax * cross_entropy(draft_XV, target_XV.argmax(-1))
    for name, loss in SOFT.items():
        if weight := getattr(cfg, name):
            total = total + weight * loss(draft_XV, target_XV, cfg.temperature)
    return total


def masked_sum(values_X: Tensor, mask_X: Tensor) -> Tensor:
    """The sum over the positions where the mask is true."""
    return torch.where(mask_X, values_X, 0.0).sum()


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
    log_p, log_q = (target_XV / temperature).log_softmax(-1), (draft_XV / temperature).log_softmax(-1)
    return log_p.clamp(min=LOWEST), log_q.clamp(min=LOWEST)
