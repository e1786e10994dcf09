"""How much two correct computations of the same logits differ, by measurement.

A row is run through its model in four ways that differ only in the order of floating-point operations: in one forward;
token by token over a cache; and as a padded row of a batch, in chunks as a round feeds them and token by token. All use
`transformers` alone: neither the engine nor any alignment strategy takes part, so that their bugs cannot increase the
measured noise. If a 16-bit model was run by other code than its own, the exact logits are a fifth way.
Shape letters: n positions, V vocabulary, B rows, T tokens fed, S columns.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from specdec.models.cache_argument import cache_argument, returned_cache
from specdec.models.causal_lm import CausalLM

NUM_PADS = 3  # masked columns before the measured row in a batch
MIN_POSITIONS = 32  # measured at least, if the row has them: a maximum over few positions is too small
KEPT_BYTES = 256 << 20  # of measurements kept per model: strategies of one sweep often differ at the same positions


@dataclass(frozen=True, slots=True)
class Rounding:
    """Teacher-forced logits of a row, and how much correct computations of them differ."""

    logits_nV: Tensor  # computed token by token over a cache, as the reference decodes; on the CPU
    largest: float  # largest difference of one logit, over all positions and pairs of computations
    rms: float  # largest root mean square difference over the vocabulary, over all positions and pairs


def rounding_of(model: CausalLM, prompt: list[int], output: list[int], at: int, batch: int, chunk: int) -> Rounding:
    """Measure a row up to position ``at`` of its output, at least MIN_POSITIONS; results are cached.

    Args:
        batch, chunk: rows of the run's batches, and tokens that one of its rounds feeds (gamma + 1).
    """
    num_positions = -(-(at + 1) // MIN_POSITIONS) * MIN_POSITIONS
    key = (tuple(prompt), tuple(output[:num_positions]), batch, chunk)
    kept = _KEPT.setdefault(model, {})
    if key in kept:
        return kept[key]
    rounding = measure_rounding(model, prompt, output[:num_positions], batch, chunk)
    if sum(other.logits_nV.nbytes for other in kept.values()) + rounding.logits_nV.nbytes <= KEPT_BYTES:
        kept[key] = rounding
    return rounding


_KEPT: WeakKeyDictionary[CausalLM, dict[tuple[object, ...], Rounding]] = WeakKeyDictionary()


@torch.inference_mode()
def measure_rounding(
    model: CausalLM, prompt: list[int], output: list[int], batch: int, chunk: int, *, foreign: bool = False
) -> Rounding:
    """Run prompt and output through the model in every way; the logits at position i decide ``output[i]``.

    Args:
        foreign: other code than the model's own is to be judged, so that in 16 bits the exact logits are a way too.
    """
    tokens, first = prompt + output[:-1], len(prompt)
    ways: list[Callable[[], Tensor]] = [
        lambda: _token_by_token(model, tokens, first),
        lambda: in_one_piece(model, tokens, first),
        lambda: _in_a_batch(model, tokens, first, batch, chunk),
        lambda: _in_a_batch(model, tokens, first, batch, 1),
    ]
    if model.dtype.itemsize == 2 and (foreign or model.execution.name != "eager"):
        ways.append(lambda: _in_float32(model, tokens, first))
    logits = [way().cpu() for way in ways]
    differences = [a.double() - b.double() for a, b in combinations(logits, 2)]
    return Rounding(
        logits[0],
        max(float(difference.abs().max()) for difference in differences),
        max(float(rms(difference).max()) for difference in differences),
    )


_PRECISE: WeakKeyDictionary[CausalLM, Any] = WeakKeyDictionary()  # float32 copies, made where one is needed


def _in_float32(model: CausalLM, tokens: list[int], first: int) -> Tensor:
    """Logits that are exact by the standard of a 16-bit model.

    The model's own 16-bit code rounds at the same operations in whatever order it is run. Its distance from the exact
    logits shows how much a computation that rounds at other operations (a fused one) may differ.
    """
    if model not in _PRECISE:
        _PRECISE[model] = copy.deepcopy(model.module).float()
    kept = len(tokens) - first + 1
    logits: Tensor = _PRECISE[model](_ids(model, [tokens]), use_cache=False, logits_to_keep=kept).logits[0]
    return logits[-kept:]


def rms(difference: Tensor) -> Tensor:
    """Root mean square over the vocabulary."""
    return difference.square().mean(-1).sqrt()


def in_one_piece(model: CausalLM, tokens: list[int], first: int) -> Tensor:
    """Logits (n + 1, V) of one forward: those after the tokens from ``first - 1`` on."""
    kept = len(tokens) - first + 1
    logits: Tensor = model.module(_ids(model, [tokens]), use_cache=False, logits_to_keep=kept).logits[0]
    return logits[-kept:]  # some models ignore logits_to_keep


def _token_by_token(model: CausalLM, tokens: list[int], first: int) -> Tensor:
    step = model.module(_ids(model, [tokens[:first]]), use_cache=True, logits_to_keep=1)
    logits = [step.logits[0, -1]]
    for token in tokens[first:]:
        past = cache_argument(model.module, returned_cache(step))
        step = model.module(_ids(model, [[token]]), **past, use_cache=True)
        logits.append(step.logits[0, -1])
    return torch.stack(logits)


def _in_a_batch(model: CausalLM, tokens: list[int], first: int, batch: int, chunk: int) -> Tensor:
    """The row after masked columns, in a batch of copies of itself, so that its prompt is read once."""
    pad = NUM_PADS if len(tokens) + NUM_PADS <= model.context_length else 0
    ids_1S = _ids(model, [[tokens[0]] * pad + tokens])
    num_columns = ids_1S.shape[1]
    columns_S = torch.arange(num_columns, device=model.device)
    positions_1S = (columns_S - pad).clamp(min=0)[None]
    real_1S = (columns_S >= pad).long()[None]  # the model derives its own masks from it
    cache, logits, start = DynamicCache(), [], 0
    taken = cache_argument(model.module, cache)
    for stop in [pad + first, *range(pad + first + chunk, num_columns + chunk, chunk)]:
        stop = min(stop, num_columns)
        if start == stop:
            break
        num_rows = 1 if start == 0 else batch
        part = model.module(
            input_ids=ids_1S[:, start:stop].expand(num_rows, -1),
            position_ids=positions_1S[:, start:stop].expand(num_rows, -1),
            attention_mask=real_1S[:, :stop].expand(num_rows, -1),
            **taken,
            use_cache=True,
            logits_to_keep=1 if start == 0 else 0,
        )
        if start == 0:
            cache.batch_repeat_interleave(batch)
        logits.append(part.logits[0, -1:] if start == 0 else part.logits[0])
        start = stop
    return torch.cat(logits)


def _ids(model: CausalLM, rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, device=model.device)
