"""The trained selector's network, and what it reads of a root.

Shape letters: B rows, D and E the hidden sizes of target and draft, V vocabulary, X numbers per row, A shapes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from specdec.core.sampling import warped
from specdec.core.sampling_params import SamplingParams
from specdec.core.transfer import to_device
from specdec.selectors.base import RootStates

PROJECTED, WIDE, NARROW = 128, 512, 32
NUM_NUMBERS = 8  # per row, besides the measured times
LEAST_LOG = -30.0  # of a probability, so that divergences stay finite


class SelectorNetwork(nn.Module):
    """Logits of the shapes, from three hidden states and some numbers.

    Each hidden state is projected and normalised; the numbers are standardised by the roots of the training.
    Source: Thomas et al. 2026, arXiv 2602.16994, section 4.
    """

    mean_X: Tensor
    deviation_X: Tensor

    def __init__(self, target_size: int, draft_size: int, num_numbers: int, num_shapes: int) -> None:
        super().__init__()
        sizes = (target_size, draft_size, draft_size)
        self.project = nn.ModuleList(
            nn.Sequential(nn.Linear(size, PROJECTED), nn.LayerNorm(PROJECTED)) for size in sizes
        )
        self.register_buffer("mean_X", torch.zeros(num_numbers))
        self.register_buffer("deviation_X", torch.ones(num_numbers))
        self.layers = nn.Sequential(
            *(nn.Linear(3 * PROJECTED + num_numbers, WIDE), nn.GELU(), nn.Dropout(0.1)),
            *(nn.Linear(WIDE, NARROW), nn.GELU(), nn.Dropout(0.1), nn.Linear(NARROW, num_shapes)),
        )

    def forward(self, target_BD: Tensor, draft_B2E: Tensor, numbers_BX: Tensor) -> Tensor:
        """(B, A)."""
        states = (target_BD, draft_B2E[:, 0], draft_B2E[:, 1])
        projected = [layer(state) for layer, state in zip(self.project, states, strict=True)]
        numbers_BX = (numbers_BX - self.mean_X) / self.deviation_X
        logits_BA: Tensor = self.layers(torch.cat([*projected, numbers_BX], dim=1))
        return logits_BA


def numbers_of(
    head: Any, states: RootStates, scores_BV: Tensor, lengths: list[int], settings: list[SamplingParams]
) -> Tensor:
    """(B, X) float32: entropies of p and q before the last token and of q after it, both divergences and the distance
    of p and q before it, the length, and the temperature.

    Args:
        head: the target's output embeddings. scores_BV: the draft's logits after the last token.
    """
    with torch.inference_mode():
        before = (head(states.target_hidden_BD), states.draft_before_BV, scores_BV)
        log_p_BV, log_q_BV, log_root_BV = (log_law(part_BV, settings) for part_BV in before)
        p_BV, q_BV = log_p_BV.exp(), log_q_BV.exp()
        entropies = [-(law.exp() * law).sum(1) for law in (log_p_BV, log_q_BV, log_root_BV)]
        divergences = [(p_BV * (log_p_BV - log_q_BV)).sum(1), (q_BV * (log_q_BV - log_p_BV)).sum(1)]
        distance_B = (p_BV - q_BV).abs().sum(1)
        texts = [[float(length), own.temperature] for length, own in zip(lengths, settings, strict=True)]
        texts_B2 = to_device(texts, scores_BV.device, torch.float32)
        return torch.stack([*entropies, *divergences, distance_B, texts_B2[:, 0].log(), texts_B2[:, 1]], dim=1)


def log_law(scores_BV: Tensor, settings: list[SamplingParams]) -> Tensor:
    """(B, V) float32: logarithms of the rows' distributions, bounded from below."""
    return warped(scores_BV[:, None].float(), settings)[:, 0].log_softmax(-1).clamp(min=LEAST_LOG)
