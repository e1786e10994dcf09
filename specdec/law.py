"""From logits to the law that a row's next token is drawn from, for rows with different settings at once.

The steps, their order and their ties are those of ``transformers`` 5.23: repetition penalty, temperature, top-k,
top-p, min-p. All arithmetic is float64. Shape letters: B rows, T positions, G drafted tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specdec.random_stream import DRAW, TEST, uniforms
from specdec.sampling import GREEDY, SamplingParams

if TYPE_CHECKING:
    from specdec.drafters.base import Draft
    from specdec.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Noise:
    """A round's random numbers, each row's own, in [0, 1), float64."""

    draws_BT: Tensor  # column d decides the token at depth d behind the last committed one, by ``draw``
    tests_BG: Tensor  # column g tests drafted node g


def settings_of(rows: list[Sequence]) -> list[SamplingParams] | None:
    """The rows' settings, or None where every row takes the model's own argmax: the path that must cost nothing."""
    if all(row.sampling is None for row in rows):
        return None
    return [row.sampling or GREEDY for row in rows]


def round_noise(rows: list[Sequence], num_columns: int, device: torch.device) -> Noise:
    """The numbers of a round over T = ``num_columns`` positions. What a row gets does not depend on T."""
    keys = [(row.sampling.seed if row.sampling else 0, row.index) for row in rows]
    draws = uniforms(keys, [range(row.length, row.length + num_columns) for row in rows], DRAW, [0] * num_columns)
    starts = [[row.length] * (num_columns - 1) for row in rows]
    return Noise(draws.to(device), uniforms(keys, starts, TEST, range(num_columns - 1)).to(device))


def processed(scores_BTV: Tensor, settings: list[SamplingParams]) -> Tensor:
    """Probabilities (B, T, V), float64, of penalised logits; a greedy row's are one-hot at its argmax."""
    temperature_B = [s.temperature or 1.0 for s in settings]
    scores_BTV = scores_BTV.double() / _per_row(temperature_B, scores_BTV)
    if any(s.top_k is not None for s in settings):
        scores_BTV = _keep_top_k(scores_BTV, settings)
    if any(s.top_p < 1 for s in settings):
        scores_BTV = _keep_top_p(scores_BTV, settings)
    probs_BTV = scores_BTV.softmax(-1)
    if any(s.min_p > 0 for s in settings):
        least_BT1 = _per_row([s.min_p for s in settings], probs_BTV) * probs_BTV.amax(-1, keepdim=True)
        probs_BTV = scores_BTV.masked_fill(probs_BTV < least_BT1, -torch.inf).softmax(-1)
    if any(s.greedy for s in settings):
        greedy_B11 = torch.tensor([s.greedy for s in settings], device=probs_BTV.device)[:, None, None]
        probs_BTV = torch.where(greedy_B11, one_hot(scores_BTV.argmax(-1), scores_BTV.shape[-1]), probs_BTV)
    return probs_BTV


def penalized(logits_BTV: Tensor, settings: list[SamplingParams], seen_BTV: Tensor | None) -> Tensor:
    """Logits with each row's repetition penalty on the tokens it has seen (None: no row has a penalty)."""
    if seen_BTV is None:
        return logits_BTV
    scores_BTV = logits_BTV.double()
    penalty_B11 = _per_row([s.repetition_penalty for s in settings], scores_BTV)
    lowered_BTV = torch.where(scores_BTV < 0, scores_BTV * penalty_B11, scores_BTV / penalty_B11)
    return torch.where(seen_BTV, lowered_BTV, scores_BTV)


def seen_tokens(rows: list[Sequence], draft: Draft | None, logits_BTV: Tensor) -> Tensor | None:
    """(B, T, V) bool: the tokens that stand before each position of a round, or None where no row has a penalty.

    Column 0 follows the row's last token, column g + 1 follows drafted node g and its ancestors.
    """
    if not any(row.sampling and row.sampling.penalizes for row in rows):
        return None
    seen_BTV = torch.zeros(logits_BTV.shape, dtype=torch.bool, device=logits_BTV.device)
    for b, row in enumerate(rows):
        seen_BTV[b, :, torch.tensor(row.tokens(0), device=seen_BTV.device)] = True
    if draft is not None:
        drafted = draft.tokens_BG.tolist()
        for b, num_drafted in enumerate(draft.num_drafted):
            for node in range(num_drafted):
                path = [drafted[b][ancestor] for ancestor in draft.path(b, node)]
                seen_BTV[b, node + 1, [token for token in path if token < logits_BTV.shape[-1]]] = True
    return seen_BTV


def draw(probs: Tensor, uniforms: Tensor) -> Tensor:
    """The token whose share of the cumulative law holds the uniform number: (..., V) and (...) to (...) ids.

    A token of probability zero is never drawn, at either end.
    """
    cumulative = probs.cumsum(-1)
    total = cumulative[..., -1:]
    # Rounding may lift u * total to the total itself, which no token holds.
    level = torch.minimum(uniforms[..., None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return (cumulative <= level).sum(-1)


def one_hot(tokens: Tensor, vocab_size: int) -> Tensor:
    """(..., V) float64: all probability on one token."""
    return torch.nn.functional.one_hot(tokens, vocab_size).double()


def _per_row(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None, None]


def _keep_top_k(scores_BTV: Tensor, settings: list[SamplingParams]) -> Tensor:
    vocab_size = scores_BTV.shape[-1]
    sizes = [min(s.top_k or vocab_size, vocab_size) for s in settings]
    largest = max((min(s.top_k, vocab_size) for s in settings if s.top_k is not None), default=1)
    best_BTK = scores_BTV.topk(largest, dim=-1).values
    last_B11 = torch.tensor([min(size, largest) - 1 for size in sizes], device=scores_BTV.device)[:, None, None]
    least_BT1 = best_BTK.gather(-1, last_B11.expand(-1, scores_BTV.shape[1], 1))
    limited_B11 = torch.tensor([s.top_k is not None for s in settings], device=scores_BTV.device)[:, None, None]
    return scores_BTV.masked_fill(limited_B11 & (scores_BTV < least_BT1), -torch.inf)


def _keep_top_p(scores_BTV: Tensor, settings: list[SamplingParams]) -> Tensor:
    ascending_BTV, order_BTV = scores_BTV.sort(dim=-1, stable=True)
    limited_B11 = torch.tensor([s.top_p < 1 for s in settings], device=scores_BTV.device)[:, None, None]
    outside_B11 = _per_row([1 - s.top_p for s in settings], scores_BTV)
    dropped_BTV = limited_B11 & (ascending_BTV.softmax(-1).cumsum(-1) <= outside_B11)
    dropped_BTV[..., -1] = False
    return scores_BTV.masked_fill(dropped_BTV.scatter(-1, order_BTV, dropped_BTV), -torch.inf)
