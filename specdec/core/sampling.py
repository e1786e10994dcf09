"""From logits to next-token distributions, for rows with different settings in one batch.

The steps are those of ``transformers.generate``, bit for bit: logits in float32 for any dtype of the model, then the
repetition penalty, temperature, top-k, top-p and min-p, by the same operations with each setting as a Python number (on
a GPU, division by a tensor of settings rounds differently). Only the final probabilities are float64.
Shape letters: B rows, T positions, G drafted tokens, V vocabulary, M = rows x positions with the same settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from specdec.core.random_numbers import DRAW, TEST, uniforms
from specdec.core.sampling_params import GREEDY, SamplingParams
from specdec.core.transfer import to_device

if TYPE_CHECKING:
    from specdec.core.round import Draft
    from specdec.core.sequence import Sequence

S = TypeVar("S")
SOFTMAX_BYTES = 1 << 20  # of a part of a softmax, which a processor's caches hold


@dataclass(frozen=True, slots=True)
class Noise:
    """A round's random numbers, each row's own, in [0, 1), float64."""

    draws_BT: Tensor  # column d picks the token at depth d after the last committed one, with ``draw``
    tests_BG: Tensor  # column g tests drafted node g, or the draft's draw number g


def settings_of(rows: list[Sequence]) -> list[SamplingParams] | None:
    """The rows' settings; None if every row takes the model's own argmax, so that this case costs nothing."""
    if all(row.sampling is None for row in rows):
        return None
    return [row.sampling or GREEDY for row in rows]


def round_noise(rows: list[Sequence], num_columns: int, device: torch.device, num_tests: int | None = None) -> Noise:
    """The numbers of a round over T = ``num_columns`` positions. By default one test per node of a chain.

    A row's numbers do not depend on how many there are.
    """
    num_tests = num_columns - 1 if num_tests is None else num_tests
    keys = [(row.sampling.seed if row.sampling else 0, row.index) for row in rows]
    draws = uniforms(keys, [range(row.length, row.length + num_columns) for row in rows], DRAW, [0] * num_columns)
    starts = [[row.length] * num_tests for row in rows]
    tests = uniforms(keys, starts, TEST, range(num_tests))
    return Noise(to_device(draws, device), to_device(tests, device))


def scores_of(logits_BTV: Tensor) -> Tensor:
    """Logits as ``transformers`` compares them: in float32. 16-bit ones stay: float32 has the same values and ties."""
    return logits_BTV.float() if logits_BTV.dtype == torch.float64 else logits_BTV


def penalized(logits_BTV: Tensor, settings: list[SamplingParams], seen_BTV: Tensor | None) -> Tensor:
    """Scores with each row's repetition penalty on the tokens it has seen (None: no row has a penalty)."""
    if seen_BTV is None:
        return scores_of(logits_BTV)
    scores_BTV = logits_BTV.float()
    lowered_BTV = _for_each_setting(_lowered, scores_BTV, [s.repetition_penalty for s in settings])
    return torch.where(seen_BTV, lowered_BTV, scores_BTV)


def processed(scores_BTV: Tensor, settings: list[SamplingParams], out_BTV: Tensor | None = None) -> Tensor:
    """Probabilities (B, T, V), float64, of penalised scores; a greedy row's are one-hot at its argmax.

    Args:
        out_BTV: memory for the result, in which each row's is contiguous.
    """
    scores_BTV = scores_BTV.float()
    probs_BTV = torch.empty_like(scores_BTV, dtype=torch.float64) if out_BTV is None else out_BTV
    warped_BTV = warped(scores_BTV, settings)
    if probs_BTV.is_contiguous():
        _softmax(warped_BTV.flatten(0, 1), probs_BTV.view(-1, probs_BTV.shape[-1]))
    else:
        for warped_TV, probs_TV in zip(warped_BTV, probs_BTV, strict=True):
            _softmax(warped_TV, probs_TV)
    if any(s.greedy for s in settings):
        greedy_B11 = to_device([s.greedy for s in settings], probs_BTV.device)[:, None, None]
        best_BT1 = argmax(scores_BTV)[..., None]
        ones_BT1 = torch.where(greedy_B11, 1.0, probs_BTV.gather(-1, best_BT1))
        probs_BTV.masked_fill_(greedy_B11, 0.0).scatter_(-1, best_BT1, ones_BT1)
    return probs_BTV


def _softmax(scores_MV: Tensor, probs_MV: Tensor) -> None:
    """Write the softmax in float64. On a CPU in parts: whole, its float64 copy would be new memory at every call."""
    step = len(scores_MV) if scores_MV.device.type != "cpu" else max(SOFTMAX_BYTES // (8 * scores_MV.shape[1]), 1)
    for first in range(0, len(scores_MV), max(step, 1)):
        part = slice(first, first + step)
        torch.softmax(scores_MV[part].double(), -1, out=probs_MV[part])


def warped(scores_BTV: Tensor, settings: list[SamplingParams]) -> Tensor:
    """float32 scores after temperature, top-k, top-p and min-p: -inf where a token cannot be drawn."""
    return _for_each_setting(_warped, scores_BTV, [replace(s, seed=0) for s in settings])


def seen_tokens(rows: list[Sequence], draft: Draft | None, logits_BTV: Tensor) -> Tensor | None:
    """(B, T, V) bool: the tokens before each position of a round; None if no row has a penalty.

    Column 0 follows the row's last token, column g + 1 follows drafted node g and its ancestors.
    """
    if not any(row.sampling and row.sampling.penalizes for row in rows):
        return None
    num_rows, num_columns, vocab_size = logits_BTV.shape
    # One more id takes what is no token: padding, and a drafter's probes.
    seen_BTX = torch.zeros(num_rows, num_columns, vocab_size + 1, dtype=torch.bool, device=logits_BTV.device)
    longest = max(row.length for row in rows)
    texts = [row.tokens(0) + [vocab_size] * (longest - row.length) for row in rows]
    texts_BTL = to_device(texts, seen_BTX.device)[:, None].expand(-1, num_columns, -1)
    seen_BTX.scatter_(-1, texts_BTL, True)
    if draft is not None and any(draft.num_drafted):
        nodes = ((b, node) for b, count in enumerate(draft.num_drafted) for node in range(count))
        index = [(b, node + 1, ancestor) for b, node in nodes for ancestor in draft.path(b, node)]
        rows_N, columns_N, nodes_N = to_device(index, seen_BTX.device).unbind(-1)
        seen_BTX[rows_N, columns_N, draft.tokens_BG[rows_N, nodes_N].clamp(max=vocab_size)] = True
    return seen_BTX[..., :vocab_size]


def total(values: Tensor) -> Tensor:
    """Sums over the vocabulary, (..., V) to (...), in an order that does not depend on the other rows.

    torch lets its threads share a sum if there is only one, so a single one is computed twice.
    """
    if values.numel() == values.shape[-1]:
        return values.expand(2, *values.shape).sum(-1)[0]
    return values.sum(-1)


def draw(probs: Tensor, uniforms: Tensor) -> Tensor:
    """The token whose interval of the cumulative distribution has the uniform number: (..., V) and (...) to (...) ids.

    A token of probability zero is never drawn, at either end. If the probabilities are NaN the id is V: no token.
    """
    cumulative = probs.cumsum(-1)
    total = cumulative[..., -1:]
    # Rounding may raise u * total to the total itself, which is in no token's interval.
    level = torch.minimum(uniforms[..., None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return (~(cumulative > level)).sum(-1)


def argmax(scores: Tensor) -> Tensor:
    """The first token of the highest score: (..., V) to (...) ids; a NaN counts as the highest.

    numpy's is ten times as fast as torch's on a CPU, and agrees with it on ties and NaNs.
    """
    if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(scores.detach().numpy().argmax(-1))
    return scores.argmax(-1)


def one_hot(tokens: Tensor, vocab_size: int) -> Tensor:
    """(..., V) float64: all probability on one token."""
    return torch.nn.functional.one_hot(tokens, vocab_size).double()


def _for_each_setting(change: Callable[[Tensor, S], Tensor], scores_BTV: Tensor, values: list[S]) -> Tensor:
    """Apply ``change`` to the scores (M, V) of all rows that share a value, for each value."""
    distinct = dict.fromkeys(values)
    if len(distinct) == 1:
        return change(scores_BTV.flatten(0, 1), values[0]).view(scores_BTV.shape)
    changed_BTV = torch.empty_like(scores_BTV)
    for value in distinct:
        places = to_device([b for b, own in enumerate(values) if own == value], scores_BTV.device)
        part_BTV = scores_BTV[places]
        changed_BTV[places] = change(part_BTV.flatten(0, 1), value).view(part_BTV.shape)
    return changed_BTV


def _lowered(scores_MV: Tensor, penalty: float) -> Tensor:
    return torch.where(scores_MV < 0, scores_MV * penalty, scores_MV / penalty)


def _warped(scores_MV: Tensor, params: SamplingParams) -> Tensor:
    """A greedy row keeps its scores: only their argmax counts."""
    if params.greedy:
        return scores_MV
    if params.temperature != 1:
        scores_MV = scores_MV / params.temperature
    if params.top_k is not None:
        least_M1 = scores_MV.topk(min(params.top_k, scores_MV.shape[-1])).values[:, -1:]
        scores_MV = scores_MV.masked_fill(scores_MV < least_M1, -torch.inf)
    if params.top_p < 1:
        scores_MV = scores_MV.masked_fill(_outside_top_p(scores_MV, params.top_p), -torch.inf)
    if params.min_p > 0:
        probs_MV = scores_MV.softmax(-1)
        unlikely_MV = probs_MV < params.min_p * probs_MV.amax(-1, keepdim=True)
        scores_MV = scores_MV.masked_fill(unlikely_MV, -torch.inf)
    return scores_MV


def _outside_top_p(scores_MV: Tensor, top_p: float) -> Tensor:
    """(M, V) bool. The sort decides which of equal scores stay, so it is called as ``transformers`` calls it."""
    ascending_MV, order_MV = torch.sort(scores_MV, descending=False)
    dropped_MV = ascending_MV.softmax(-1).cumsum(-1) <= 1 - top_p
    dropped_MV[:, -1] = False
    return dropped_MV.scatter(1, order_MV, dropped_MV)
