"""Compiled execution: the fused forward, with the pieces between two attentions compiled by torch.compile.

The pieces take their weights as arguments, so that one compilation serves all layers, and all batch and draft sizes.
It pays on a GPU, where every operation is a kernel launch (`reduce-overhead` replays the pieces as CUDA graphs). On a
CPU it is exact and tested, but slower than ``fused``: the matrix products dominate and are the same calls, and large
weights cannot be packed for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from specdec.models.execution.base import Call
from specdec.models.execution.fused import FusedExecution, Layer, RMSNorm
from specdec.models.execution.linear import Linear

WARMUP_TOKENS = (2, 5)
"""Tokens of the two calls that compile: with two sizes, the compiler treats the size as dynamic."""


class CompiledLayer(Layer):
    """A fused layer whose two pieces are compiled functions."""

    def __init__(
        self, module: Any, number: int, window: int | None, before: Callable[..., Any], after: Callable[..., Any]
    ) -> None:
        super().__init__(module, number, window, may_pack=False)
        self._before, self._after = before, after

    def project(self, x_MD: Tensor, cos_M1E: Tensor, sin_M1E: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        norms = (_norm(self.norm_in), _norm(self.norm_q), _norm(self.norm_k))
        parts: tuple[Tensor, Tensor, Tensor]
        parts = self._before(x_MD, cos_M1E, sin_M1E, norms, _weights(self.qkv), (self.H, self.K, self.E))
        return parts

    def finish(self, x_MD: Tensor, heads_MX: Tensor) -> Tensor:
        weights = (_weights(self.out), _weights(self.gate_up), _weights(self.down))
        return self._after(x_MD, heads_MX, _norm(self.norm_mlp), weights, self.activation)  # type: ignore[no-any-return]


class CompiledExecution(FusedExecution):
    """FusedExecution, compiled; see the module's text."""

    name = "compiled"

    def __init__(self, module: Any) -> None:
        start = time.perf_counter()
        mode = "reduce-overhead" if module.device.type == "cuda" else None
        self._before = torch.compile(_before_attention, dynamic=True, mode=mode)
        self._after = torch.compile(_after_attention, dynamic=True, mode=mode)
        super().__init__(module)
        self._compile()
        self.prepare_s = time.perf_counter() - start

    def run(self, call: Call) -> Tensor:
        if self.module.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # the outputs of the last forward's graphs are no longer needed
        return super().run(call)

    def _layer(self, module: Any, number: int, window: int | None) -> Layer:
        return CompiledLayer(module, number, window, self._before, self._after)

    @torch.inference_mode()
    def _compile(self) -> None:
        layer = self.layers[0]
        for count in WARMUP_TOKENS:
            x_MD = self._embed(torch.zeros(count, dtype=torch.long, device=self.module.device))
            cos_M1E, sin_M1E = self.rotation(x_MD, torch.arange(count, device=self.module.device)[None], count)
            heads_MHE, _, _ = layer.project(x_MD, cos_M1E, sin_M1E)
            layer.finish(x_MD, heads_MHE.flatten(1))


Norm = tuple[Tensor, float]
Weights = tuple[Tensor, Tensor | None]


def _norm(norm: RMSNorm | None) -> Norm | None:
    return None if norm is None else (norm.weight, norm.eps)


def _weights(product: Linear) -> Weights:
    return product.weight_OI, product.bias_O


def _normed(x: Tensor, norm: Norm) -> Tensor:
    weight, eps = norm
    if x.dtype == torch.float32:
        return torch.rms_norm(x, x.shape[-1:], weight, eps)
    return torch.rms_norm(x.float(), x.shape[-1:], None, eps).to(x.dtype) * weight


def _before_attention(
    x_MD: Tensor,
    cos_M1E: Tensor,
    sin_M1E: Tensor,
    norms: tuple[Norm, Norm | None, Norm | None],
    qkv: Weights,
    sizes: tuple[int, int, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer.project as a function of tensors."""
    H, K, E = sizes
    norm_in, norm_q, norm_k = norms
    qkv_MXE = linear(_normed(x_MD, norm_in), *qkv).view(x_MD.shape[0], H + 2 * K, E)
    q, k, v = qkv_MXE[:, :H], qkv_MXE[:, H : H + K], qkv_MXE[:, H + K :]
    if norm_q is not None and norm_k is not None:
        q, k = _normed(q, norm_q), _normed(k, norm_k)
    q, k = (part * cos_M1E + torch.roll(part, E // 2, dims=-1) * sin_M1E for part in (q, k))
    return q, k, v


def _after_attention(
    x_MD: Tensor, heads_MX: Tensor, norm: Norm, weights: tuple[Weights, Weights, Weights], activation: Any
) -> Tensor:
    """Layer.finish as a function of tensors."""
    out, gate_up, down = weights
    x_MD = x_MD + linear(heads_MX, *out)
    gate, up = linear(_normed(x_MD, norm), *gate_up).chunk(2, dim=-1)
    return x_MD + linear(activation(gate) * up, *down)
