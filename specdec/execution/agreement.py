"""A prepared fused execution compared with the model's own code, once, on the weights that it will run on.

Two ragged rows of a few tokens run through the decoder of `transformers` alone: its own masks, no cache, nothing padded
away by us. Every fused layer then gets the very inputs that the decoder's layer got, so that an error can neither grow
nor drown on its way through the others, and what both add is compared.

What 16-bit numbers lose in one layer differs between models by orders of magnitude, so there it is measured: some
layers are computed in float32 too, where the two must agree closely, and the fused layer in 16 bits may be as far from
that as the decoder's own, within a factor. Shape letters: B rows, S columns, T tokens fed, M = B x T, D hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specdec.execution.fusable import windows_of
from specdec.execution.fused import FusedExecution, Layer, Rotation, additive_masks, mask_levels

PADS, STEPS = (5, 0), ((0, 8), (8, 12))
"""Columns of padding in front of each row, and the columns that each of two forwards feeds."""
FLOAT32_WEIGHTS = 1 << 29
"""Weights of 16-bit layers that are converted to float32 for the comparison, one layer at a time."""
NOISE_FACTOR, MOST_NOISE = 4.0, 0.5
"""How much further from float32 than the decoder's own 16-bit layer ours may be, and what is too far in any case."""


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
        self._parts[index] = states_BHTD if known is None else torch.cat([known, states_BHTD], dim=2)
        return self._parts[index]


@torch.inference_mode()
def disagreement(execution: FusedExecution) -> str | None:
    """Where the execution differs from `transformers`' own code by more than rounding; None where it does not."""
    decoder, head = execution.model.module.model, execution.model.module.lm_head
    seen, hidden_BSD = _run(decoder, _embeddings(execution.model, decoder))
    dtype = execution.model.dtype
    bound = _bound(dtype)
    if dtype.itemsize < 4:
        for number in _sample(decoder):
            reason, noise = _in_float32(decoder, number, seen[number])
            if reason is not None:
                return reason
            bound = min(max(bound, NOISE_FACTOR * noise), MOST_NOISE)
    for number, layer in enumerate(execution.layers):
        ours_BSD = _fused(layer, execution.rotation, seen[number].given)
        reason = _beyond(f"layer {number}", error_of(ours_BSD, seen[number]), bound, dtype)
        if reason is not None:
            return reason
    normed_BSD = execution.norm(seen[-1].gave)
    reason = _beyond("the last norm", _relative(normed_BSD, hidden_BSD), _bound(dtype), dtype)
    logits_BSV = execution.head(hidden_BSD.flatten(0, 1)).unflatten(0, hidden_BSD.shape[:2])
    return reason or _beyond("the head", _relative(logits_BSV, head(hidden_BSD)), _bound(dtype), dtype)


def error_of(ours_BSD: Tensor, layer: Seen) -> float:
    """Root mean square difference as a share of what the layer adds, and of the last places of what it is added to."""
    given, gave, ours = (part.to("cpu", torch.float64) for part in (layer.given, layer.gave, ours_BSD))
    added = (gave - given).square().mean(-1, keepdim=True).sqrt()
    scale = added + 4 * _bound(layer.given.dtype) * given.abs()
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


def _bound(dtype: torch.dtype) -> float:
    """Half of the digits: what rounding in one layer stays well below. The norms are float32 in a float64 model too."""
    return float(max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) ** 0.5)


def _beyond(place: str, error: float, bound: float, dtype: torch.dtype) -> str | None:
    if error <= bound:  # NaN is not
        return None
    name = str(dtype).removeprefix("torch.")
    return f"{place} differs from transformers' own by {error:.1e}, and rounding in {name} explains {bound:.1e}"


def _embeddings(model: Any, decoder: Any) -> Tensor:
    """(B, S, D) inputs of the decoder; noise where it has no table of its own (an EAGLE layer)."""
    rows, columns = len(PADS), STEPS[-1][1]
    ids_BS = torch.arange(1, rows * columns + 1).view(rows, columns) * 7919 % model.vocab_size
    embeds_BSD: Tensor = decoder.embed_tokens(ids_BS.to(model.device))
    if embeds_BSD.is_floating_point():
        return embeds_BSD
    generator = torch.Generator().manual_seed(0)
    noise_BSD = torch.randn(rows, columns, decoder.config.hidden_size, generator=generator)
    return noise_BSD.to(model.device, model.dtype)


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
        # A compiled layer may give out memory that its next call overwrites.
        outputs.append(y_MD.clone().unflatten(0, (len(real_BS), stop - start)))
    return torch.cat(outputs, dim=1)


def _layout(device: torch.device) -> tuple[Tensor, Tensor]:
    """Which columns (B, S) hold real tokens, and their positions."""
    columns_S = torch.arange(STEPS[-1][1], device=device)
    pads_B1 = torch.tensor(PADS, device=device)[:, None]
    return columns_S >= pads_B1, (columns_S - pads_B1).clamp(min=0)


def _sample(decoder: Any) -> list[int]:
    """Layers that are compared in float32: the first, the last and those between, for as long as it is cheap."""
    count = len(windows_of(decoder))
    chosen, weights = [], 0
    for number in dict.fromkeys([0, count - 1, *range(count)]):
        weights += sum(weight.numel() for weight in decoder.layers[number].parameters())
        if weights > FLOAT32_WEIGHTS:
            break
        chosen.append(number)
    return chosen


def _in_float32(decoder: Any, number: int, seen: Seen) -> tuple[str | None, float]:
    """Why a layer in float32 is not the decoder's own; and how far the decoder's 16-bit layer is from float32."""
    twin = copy.copy(decoder)
    twin.config = copy.deepcopy(decoder.config)
    twin.config.num_hidden_layers = 1
    if getattr(twin.config, "layer_types", None):
        twin.config.layer_types = [twin.config.layer_types[number]]
    module = copy.deepcopy(decoder.layers[number]).float()
    twin.__dict__["_modules"] = {**decoder._modules, "layers": torch.nn.ModuleList([module])}
    exact = _run(twin, seen.given.float())[0][0]
    layer = Layer(module, 0, windows_of(decoder)[number], may_pack=False)
    ours_BSD = _fused(layer, Rotation(decoder.rotary_emb), exact.given)
    reason = _beyond(f"layer {number}", error_of(ours_BSD, exact), _bound(torch.float32), torch.float32)
    return reason, error_of(exact.gave, seen)
