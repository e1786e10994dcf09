"""A prepared fused execution compared with the model's own code, once, on the weights that it will run with.

Two ragged rows of a few tokens run through the decoder of `transformers`, with its own masks and without a cache. Each
fused layer then gets the same inputs as the decoder's layer, so that an error is neither amplified nor hidden by other
layers, and what both add to the residual stream is compared.

The rounding error to allow is measured, because it differs between models by orders of magnitude. Some layers are also
computed in a finer number format. There the two may differ by the effect of one float32 rounding of the inputs (norms
are float32 in every format), and in the run's own format by the error of the decoder's own layer, times a factor.
Shape letters: B rows, S columns, T tokens fed, M = B x T, D hidden size, X any.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from specdec.core.outputs import LOGITS
from specdec.models.execution.base import Call, Given
from specdec.models.execution.fusable import windows_of
from specdec.models.execution.fused import FusedExecution, Layer, OneLayer
from specdec.models.kv import KVStorage

PADS, STEPS = (5, 0), ((0, 8), (8, 12))
"""Columns of left padding per row, and the columns that each of two forwards feeds."""
FINER = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float32: torch.float64}
FINER_BYTES = 2 << 30
"""Bytes of a layer converted to the finer format; larger layers are converted only if they look wrong."""
ROUNDING_FACTOR, MAX_ERROR = 8.0, 0.5
"""The error allowed as a multiple of measured rounding, and the largest error allowed at all."""
PLACES_16, PLACES_32 = 4, 16
"""Units in the last place allowed without measuring; products of 16-bit numbers are summed in float32."""


@dataclass(frozen=True, slots=True)
class LayerRun:
    """Inputs and outputs of one decoder layer, (B, S, D)."""

    inputs_BSD: Tensor
    outputs_BSD: Tensor


class Checked(Protocol):
    """An execution whose layers can be run one by one."""

    module: Any

    def layer(self, number: int, call: Call) -> Tensor:
        """One layer's outputs (B, T, D) for the embeddings in ``call``; its keys and values go to the call's writer."""

    def norm(self, x_BTD: Tensor) -> Tensor:
        """The last norm."""

    def head(self, x_MD: Tensor) -> Tensor:
        """Logits (M, V)."""


@torch.inference_mode()
def disagreement(execution: Checked) -> str | None:
    """Where the execution differs from `transformers`' own code by more than rounding; None if nowhere."""
    module = execution.module
    decoder, head, dtype = module.model, module.lm_head, module.dtype
    runs, hidden_BSD = _run(decoder, _embeddings(module))
    sample, bound = _sample(decoder, dtype), _unmeasured(dtype)
    for number, run in enumerate(runs):
        error, allowed = error_of(_outputs(execution, number, run.inputs_BSD), run), bound
        if number in sample or not error <= bound:
            reason, rounding = _in_finer_numbers(execution, number, run)
            if reason is not None:
                return reason
            allowed = min(max(bound, ROUNDING_FACTOR * rounding), MAX_ERROR)
        if not error <= allowed:
            return _difference_message(f"layer {number}", error, allowed, dtype)
    logits_BSV = execution.head(hidden_BSD.flatten(0, 1)).unflatten(0, hidden_BSD.shape[:2])
    ends = {"last norm": (execution.norm(runs[-1].outputs_BSD), hidden_BSD), "head": (logits_BSV, head(hidden_BSD))}
    for place, (ours_BSX, theirs_BSX) in ends.items():
        error = _relative(ours_BSX, theirs_BSX)
        if not error <= bound:
            return _difference_message(f"the {place}", error, bound, dtype)
    return None


def error_of(ours_BSD: Tensor, layer: LayerRun) -> float:
    """Root mean square difference, relative to what the layer adds plus a tenth of what it is added to."""
    inputs, theirs, ours = (part.to("cpu", torch.float64) for part in (layer.inputs_BSD, layer.outputs_BSD, ours_BSD))
    added = (theirs - inputs).square().mean(-1, keepdim=True).sqrt()
    # A tenth, because the sum itself is rounded, by up to about ten of the compared units.
    scale = added + 0.1 * inputs.abs()
    return _rms(_difference(ours, theirs) / scale.clamp(min=torch.finfo(torch.float64).tiny))


def _relative(ours_BSX: Tensor, theirs_BSX: Tensor) -> float:
    ours, theirs = (part.to("cpu", torch.float64) for part in (ours_BSX, theirs_BSX))
    size = theirs.square().mean(-1, keepdim=True).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    return _rms(_difference(ours, theirs) / size)


def _difference(ours: Tensor, theirs: Tensor) -> Tensor:
    """Their difference; 0 where both overflow alike."""
    return torch.where((ours == theirs) | (ours.isnan() & theirs.isnan()), 0.0, ours - theirs)


def _rms(error_BSX: Tensor) -> float:
    """Root mean square over the tokens of all rows, padding excluded."""
    real = torch.cat([row[pads:] for row, pads in zip(error_BSX, PADS, strict=True)])
    return float(real.square().mean().sqrt())


def _eps(dtype: torch.dtype) -> float:
    """Machine epsilon of a layer: that of float32 at least, as norms are computed in it."""
    return max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)


def _unmeasured(dtype: torch.dtype) -> float:
    return (PLACES_16 if dtype.itemsize == 2 else PLACES_32) * _eps(dtype)


def _difference_message(place: str, error: float, allowed: float, dtype: torch.dtype) -> str:
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


def _run(decoder: Any, embeds_BSD: Tensor) -> tuple[list[LayerRun], Tensor]:
    """Inputs and outputs of the decoder's layers, and its last hidden states; padding is on the left and masked."""
    real_BS, positions_BS = _layout(embeds_BSD.device)
    with _recorded(decoder) as runs:
        output = decoder(
            inputs_embeds=embeds_BSD, attention_mask=real_BS.long(), position_ids=positions_BS, use_cache=False
        )
    return runs, output.last_hidden_state


@contextmanager
def _recorded(decoder: Any) -> Iterator[list[LayerRun]]:
    runs: list[LayerRun] = []

    def record(module: Any, inputs: tuple[Any, ...], outputs: Any) -> None:
        runs.append(LayerRun(inputs[0], outputs[0] if isinstance(outputs, tuple) else outputs))

    handles = [layer.register_forward_hook(record) for layer in decoder.layers]
    try:
        yield runs
    finally:
        for handle in handles:
            handle.remove()


def _outputs(execution: Checked, number: int, inputs_BSD: Tensor) -> Tensor:
    """A layer's outputs (B, S, D) in two forwards, the second over the keys and values of the first."""
    real_BS, positions_BS = _layout(inputs_BSD.device)
    columns_S = torch.arange(real_BS.shape[1], device=real_BS.device)
    mask_BSS = (columns_S <= columns_S[:, None]) & real_BS[:, None]
    mask_BSS |= columns_S == columns_S[:, None]
    # Hidden states of padding may be NaN by now, and a masked key would still give 0 x NaN.
    inputs_BSD = torch.where(real_BS[..., None], inputs_BSD, 0)
    storage, outputs = layer_storage(execution.module, number, len(PADS), inputs_BSD.dtype), []
    for start, stop in STEPS:
        layout = Given(positions_BS[:, start:stop].contiguous(), mask_BSS[:, start:stop, :stop].contiguous())
        call = Call(inputs_BSD[:, start:stop].contiguous(), layout, storage.append(stop - start), 0, LOGITS)
        outputs.append(execution.layer(number, call).clone())  # a compiled layer may reuse its memory
    return torch.cat(outputs, dim=1)


def layer_storage(module: Any, number: int, num_rows: int, dtype: torch.dtype) -> KVStorage:
    """An empty storage for the layers up to ``number``."""
    attention = module.model.layers[number].self_attn
    heads, parts = attention.k_proj.out_features // attention.head_dim, 2 * number + 2
    data_NBHSD = torch.zeros(parts, num_rows, heads, 0, attention.head_dim, dtype=dtype, device=module.device)
    return KVStorage(data_NBHSD, 0, ((heads, attention.head_dim),) * parts)


def _layout(device: torch.device) -> tuple[Tensor, Tensor]:
    """Which columns (B, S) hold real tokens, and their positions."""
    columns_S = torch.arange(STEPS[-1][1], device=device)
    pads_B1 = torch.tensor(PADS, device=device)[:, None]
    return columns_S >= pads_B1, (columns_S - pads_B1).clamp(min=0)


def _sample(decoder: Any, dtype: torch.dtype) -> set[int]:
    """Layers that are always computed in finer numbers, unless large: the last, and the first with each window."""
    windows = windows_of(decoder)
    numbers = {windows.index(window) for window in windows} | {len(windows) - 1}
    largest = max(sum(weight.numel() for weight in decoder.layers[n].parameters()) for n in numbers)
    return numbers if largest * FINER.get(dtype, dtype).itemsize <= FINER_BYTES else set()


def _in_finer_numbers(execution: Checked, number: int, run: LayerRun) -> tuple[str | None, float]:
    """How a layer differs from the decoder's own in finer numbers, if it does; and the rounding of the decoder's own.

    Rounding: the error of its output in the run's format, or the effect of float32 rounding of its inputs if larger. An
    execution that computes in one format only is not tried in finer numbers.
    """
    decoder, dtype = execution.module.model, FINER.get(run.inputs_BSD.dtype, torch.float64)
    twin = copy.copy(decoder)
    twin.config = copy.deepcopy(decoder.config)
    twin.config.num_hidden_layers = 1
    if getattr(twin.config, "layer_types", None):
        twin.config.layer_types = [twin.config.layer_types[number]]
    module = copy.deepcopy(decoder.layers[number]).to(dtype)
    twin.__dict__["_modules"] = {**decoder._modules, "layers": torch.nn.ModuleList([module])}
    inputs_BSD = run.inputs_BSD.to(dtype)
    exact = _run(twin, inputs_BSD)[0][0]
    signs_BSD = torch.ones_like(inputs_BSD)
    signs_BSD[..., ::2] = -1
    moved = _run(twin, inputs_BSD * (1 + _eps(torch.float32) * signs_BSD))[0][0]
    condition = error_of(moved.outputs_BSD, exact)
    rounding = max(condition, error_of(exact.outputs_BSD, run))
    if not isinstance(execution, FusedExecution):
        return None, rounding
    finer = OneLayer(execution.module, Layer(module, 0, windows_of(decoder)[number], may_pack=False))
    error = error_of(_outputs(finer, 0, inputs_BSD), exact)
    allowed = max(ROUNDING_FACTOR * condition, _unmeasured(dtype))
    reason = None if error <= min(allowed, MAX_ERROR) else _difference_message(f"layer {number}", error, allowed, dtype)
    return reason, rounding
