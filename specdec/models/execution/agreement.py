"""A prepared fused execution compared with the model's own code, once, on the weights that it will run on.

Two ragged rows of a few tokens run through the decoder of `transformers` alone, with its own masks and without a cache.
Every fused layer then gets the very inputs that the decoder's layer got, so that an error can neither grow nor drown on
its way through the others, and what both add is compared.

How much rounding may make of it is measured, because it differs between models by orders of magnitude. Some layers are
computed in a finer number format too. There the two may differ by what one float32 rounding of the inputs changes (the
norms are float32 in every format), and in the run's own format by as much as the decoder's own layer lies off, within
a factor. Shape letters: B rows, S columns, T tokens fed, M = B x T, D hidden size, X any.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specdec.models.execution.fusable import windows_of
from specdec.models.execution.fused import FusedExecution, Layer, Rotation, additive_masks, mask_levels

PADS, STEPS = (5, 0), ((0, 8), (8, 12))
"""Columns of padding in front of each row, and the columns that each of two forwards feeds."""
FINER = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float32: torch.float64}
FINER_BYTES = 2 << 30
"""Bytes of converted weights, one layer at a time: larger layers are converted only if they look wrong."""
FACTOR, MOST = 8.0, 0.5
"""By how much more than measured rounding ours may differ, and what is too much in any case."""
PLACES_16, PLACES_32 = 4, 16
"""Last places that rounding may take without being measured; products of 16-bit numbers are summed in float32."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one decoder layer was given and gave, (B, S, D)."""

    given: Tensor
    gave: Tensor


class _Columns:
    """A KVWriter that keeps all columns, whatever storage a run uses."""

    def __init__(self) -> None:
        self.num_columns = 0
        self._parts: dict[int, Tensor] = {}

    def write(self, index: int, states_BHTD: Tensor) -> Tensor:
        """See KVWriter."""
        known = self._parts.get(index)
        # A copy: a compiled layer may give out memory that its next call overwrites.
        self._parts[index] = states_BHTD.clone() if known is None else torch.cat([known, states_BHTD], dim=2)
        return self._parts[index]


@torch.inference_mode()
def disagreement(execution: FusedExecution) -> str | None:
    """Where the execution differs from `transformers`' own code by more than rounding; None where it does not."""
    module = execution.module
    decoder, head, dtype = module.model, module.lm_head, module.dtype
    seen, hidden_BSD = _run(decoder, _embeddings(module))
    sample, bound = _sample(decoder, dtype), _unmeasured(dtype)
    for number, layer in enumerate(execution.layers):
        error, allowed = error_of(_fused(layer, execution.rotation, seen[number].given), seen[number]), bound
        if number in sample or not error <= bound:
            reason, rounding = _in_finer_numbers(decoder, number, seen[number])
            if reason is not None:
                return reason
            allowed = min(max(bound, FACTOR * rounding), MOST)
        if not error <= allowed:
            return _told(f"layer {number}", error, allowed, dtype)
    logits_BSV = execution.head(hidden_BSD.flatten(0, 1)).unflatten(0, hidden_BSD.shape[:2])
    ends = {"last norm": (execution.norm(seen[-1].gave), hidden_BSD), "head": (logits_BSV, head(hidden_BSD))}
    for place, (ours_BSX, theirs_BSX) in ends.items():
        error = _relative(ours_BSX, theirs_BSX)
        if not error <= bound:
            return _told(f"the {place}", error, bound, dtype)
    return None


def error_of(ours_BSD: Tensor, layer: Seen) -> float:
    """Root mean square difference, as a share of what the layer adds and a little of what it is added to."""
    given, gave, ours = (part.to("cpu", torch.float64) for part in (layer.given, layer.gave, ours_BSD))
    added = (gave - given).square().mean(-1, keepdim=True).sqrt()
    # A tenth: the sum itself is rounded, at worst by some ten of the places that are compared.
    scale = added + 0.1 * given.abs()
    return _rms(_difference(ours, gave) / scale.clamp(min=torch.finfo(torch.float64).tiny))


def _relative(ours_BSX: Tensor, theirs_BSX: Tensor) -> float:
    ours, theirs = (part.to("cpu", torch.float64) for part in (ours_BSX, theirs_BSX))
    size = theirs.square().mean(-1, keepdim=True).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    return _rms(_difference(ours, theirs) / size)


def _difference(ours: Tensor, theirs: Tensor) -> Tensor:
    """0 where both overflow alike."""
    return torch.where((ours == theirs) | (ours.isnan() & theirs.isnan()), 0.0, ours - theirs)


def _rms(error_BSX: Tensor) -> float:
    """Over the real tokens of all rows."""
    real = torch.cat([row[pads:] for row, pads in zip(error_BSX, PADS, strict=True)])
    return float(real.square().mean().sqrt())


def _eps(dtype: torch.dtype) -> float:
    """The last place of what a layer computes: never finer than float32, which its norms are computed in."""
    return max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)


def _unmeasured(dtype: torch.dtype) -> float:
    return (PLACES_16 if dtype.itemsize == 2 else PLACES_32) * _eps(dtype)


def _told(place: str, error: float, allowed: float, dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    return f"{place} differs from transformers' own by {error:.1e}, and rounding in {name} explains {allowed:.1e}"


def _embeddings(module: Any) -> Tensor:
    """(B, S, D) inputs of the decoder; noise where it has no embedding table (an EAGLE layer)."""
    rows, columns = len(PADS), STEPS[-1][1]
    ids_BS = torch.arange(1, rows * columns + 1).view(rows, columns) * 7919 % module.config.vocab_size
    embeds_BSD: Tensor = module.model.embed_tokens(ids_BS.to(module.device))
    if embeds_BSD.is_floating_point():
        return embeds_BSD
    generator = torch.Generator().manual_seed(0)
    noise_BSD = torch.randn(rows, columns, module.config.hidden_size, generator=generator)
    return noise_BSD.to(module.device, module.dtype)


def _run(decoder: Any, embeds_BSD: Tensor) -> tuple[list[Seen], Tensor]:
    """What the decoder's layers saw, and its last hidden states; padding stands on the left and sees nothing."""
    real_BS, positions_BS = _layout(embeds_BSD.device)
    with _watched(decoder) as seen:
        output = decoder(
            inputs_embeds=embeds_BSD, attention_mask=real_BS.long(), position_ids=positions_BS, use_cache=False
        )
    return seen, output.last_hidden_state


@contextmanager
def _watched(decoder: Any) -> Iterator[list[Seen]]:
    seen: list[Seen] = []

    def note(module: Any, given: tuple[Any, ...], gave: Any) -> None:
        seen.append(Seen(given[0], gave[0] if isinstance(gave, tuple) else gave))

    handles = [layer.register_forward_hook(note) for layer in decoder.layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _fused(layer: Layer, rotation: Rotation, given_BSD: Tensor) -> Tensor:
    """The layer's outputs (B, S, D) in two forwards, the second over the keys and values of the first."""
    real_BS, positions_BS = _layout(given_BSD.device)
    columns_S = torch.arange(real_BS.shape[1], device=real_BS.device)
    mask_BSS = (columns_S <= columns_S[:, None]) & real_BS[:, None]
    mask_BSS |= columns_S == columns_S[:, None]
    # Padding may have become anything on its way; as a key it is hidden, but 0 x NaN would not be.
    given_BSD = torch.where(real_BS[..., None], given_BSD, 0)
    levels = mask_levels(given_BSD.dtype, given_BSD.device)
    writer, outputs = _Columns(), []
    for start, stop in STEPS:
        x_MD = given_BSD[:, start:stop].flatten(0, 1)
        cos_sin = rotation(x_MD, positions_BS[:, start:stop], stop)
        writer.num_columns = stop
        masks = additive_masks([layer], mask_BSS[:, start:stop, :stop], levels)
        y_MD = layer(x_MD, cos_sin, masks[layer.window], writer)
        outputs.append(y_MD.clone().unflatten(0, (len(real_BS), stop - start)))
    return torch.cat(outputs, dim=1)


def _layout(device: torch.device) -> tuple[Tensor, Tensor]:
    """Which columns (B, S) hold real tokens, and their positions."""
    columns_S = torch.arange(STEPS[-1][1], device=device)
    pads_B1 = torch.tensor(PADS, device=device)[:, None]
    return columns_S >= pads_B1, (columns_S - pads_B1).clamp(min=0)


def _sample(decoder: Any, dtype: torch.dtype) -> set[int]:
    """Layers that are computed in finer numbers in any case: the last, and the first with each window, if not large."""
    windows = windows_of(decoder)
    numbers = {windows.index(window) for window in windows} | {len(windows) - 1}
    largest = max(sum(weight.numel() for weight in decoder.layers[n].parameters()) for n in numbers)
    return numbers if largest * FINER.get(dtype, dtype).itemsize <= FINER_BYTES else set()


def _in_finer_numbers(decoder: Any, number: int, seen: Seen) -> tuple[str | None, float]:
    """Why a layer is not the decoder's own in finer numbers; and what rounding does to the decoder's own.

    Rounding: how far its output lies off in the run's numbers, and how far float32 rounding of its inputs moves it.
    """
    dtype = FINER.get(seen.given.dtype, torch.float64)
    twin, module = copy.copy(decoder), copy.deepcopy(decoder.layers[number]).to(dtype)
    twin.config = copy.deepcopy(decoder.config)
    twin.config.num_hidden_layers = 1
    if getattr(twin.config, "layer_types", None):
        twin.config.layer_types = [twin.config.layer_types[number]]
    twin.__dict__["_modules"] = {**decoder._modules, "layers": torch.nn.ModuleList([module])}
    given_BSD = seen.given.to(dtype)
    exact = _run(twin, given_BSD)[0][0]
    signs_BSD = torch.ones_like(given_BSD)
    signs_BSD[..., ::2] = -1
    moved = _run(twin, given_BSD * (1 + _eps(torch.float32) * signs_BSD))[0][0]
    condition = error_of(moved.gave, exact)
    layer = Layer(module, 0, windows_of(decoder)[number], may_pack=False)
    error = error_of(_fused(layer, Rotation(decoder.rotary_emb), given_BSD), exact)
    allowed = max(FACTOR * condition, _unmeasured(dtype))
    reason = None if error <= min(allowed, MOST) else _told(f"layer {number}", error, allowed, dtype)
    return reason, max(condition, error_of(exact.gave, seen))
