"""Fused execution: the forward of the Llama family in few operations, prepared once, without the framework's layers.

It saves operations: queries, keys and values come from one matrix product, gate and up from another; query heads that
share a key head are folded into the queries, so that keys and values are never repeated; the mask is made once per
forward, not once per layer; residuals are added by the product; large weights are packed on a CPU. The arithmetic is
the model's own (the same norms, rotations and softmax), so results agree up to rounding. fusable.py says which models
can be fused, agreement.py checks the result.

Shape letters: M = B x T tokens, D hidden size, H query heads, K key heads, G = H / K, E head size, S columns.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from specdec.core.outputs import NORMED
from specdec.models.execution.base import Call, Execution
from specdec.models.execution.fusable import can_fuse, windows_of
from specdec.models.execution.linear import Linear, joined
from specdec.models.execution.parts import attend_shared, part_levels
from specdec.models.kv import KVWriter
from specdec.models.masks import within_window
from specdec.models.shared import SharedColumns


class RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight, in float32 like the model's own."""

    def __init__(self, module: Any) -> None:
        self.weight = module.weight.detach()
        self.eps: float = module.variance_epsilon
        self._eps = torch.tensor(self.eps, dtype=torch.float32, device=self.weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        """Over the last dimension."""
        if x.dtype != torch.float32:
            normed: Tensor = torch.rms_norm(x.float(), x.shape[-1:], None, self.eps).to(x.dtype) * self.weight
            return normed
        # torch.rms_norm is a dozen operations on a CPU; for few tokens these five take half of its time.
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = torch.addcmul(self._eps, length, length, value=1 / x.shape[-1]).rsqrt_()
        return (x * scale).mul_(self.weight)


class Layer:
    """One decoder layer: attention and gated MLP, each applied after a norm and added to its input."""

    def __init__(self, module: Any, number: int, window: int | None, *, may_pack: bool = True) -> None:
        attention, mlp = module.self_attn, module.mlp
        self.number, self.window = number, window
        self.E: int = attention.head_dim
        self.H, self.K = (part.out_features // self.E for part in (attention.q_proj, attention.k_proj))
        self.scale: float = attention.scaling
        self.norm_in, self.norm_mlp = RMSNorm(module.input_layernorm), RMSNorm(module.post_attention_layernorm)
        self.qkv = joined(attention.q_proj, attention.k_proj, attention.v_proj, may_pack=may_pack)
        self.norm_q = RMSNorm(attention.q_norm) if hasattr(attention, "q_norm") else None
        self.norm_k = RMSNorm(attention.k_norm) if hasattr(attention, "k_norm") else None
        self.out = Linear(attention.o_proj.weight, attention.o_proj.bias, may_pack=may_pack)
        self.gate_up = joined(mlp.gate_proj, mlp.up_proj, may_pack=may_pack)
        self.down = Linear(mlp.down_proj.weight, mlp.down_proj.bias, may_pack=may_pack)
        self.activation = mlp.act_fn

    def __call__(self, x_MD: Tensor, rotation: tuple[Tensor, Tensor], mask_B1QS: Tensor, writer: KVWriter) -> Tensor:
        """The hidden states after this layer; the writer stores its keys and values."""
        B, _, Q, _ = mask_B1QS.shape
        T = Q * self.K // self.H
        q_MHE, k_MKE, v_MKE = self.project(x_MD, *rotation)
        keys = writer.write(2 * self.number, k_MKE.view(B, T, self.K, self.E).transpose(1, 2))
        values = writer.write(2 * self.number + 1, v_MKE.view(B, T, self.K, self.E).transpose(1, 2))
        return self.finish(self.residual(x_MD), _attend(self, q_MHE, keys, values, mask_B1QS, (B, T), writer.shared))

    def normed(self, x_MD: Tensor) -> Tensor:
        """What queries, keys and values are made of."""
        return self.norm_in(x_MD)

    def residual(self, x_MD: Tensor) -> Tensor:
        """What the attention's output is added to."""
        return x_MD

    def project(self, x_MD: Tensor, cos_M1E: Tensor, sin_M1E: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries (M, H, E) and keys (M, K, E), and values (M, K, E)."""
        qkv = self.qkv(self.normed(x_MD)).view(len(x_MD), self.H + 2 * self.K, self.E)
        qk = qkv[:, : self.H + self.K]
        if self.norm_q is not None and self.norm_k is not None:
            qk = torch.cat([self.norm_q(qk[:, : self.H]), self.norm_k(qk[:, self.H :])], dim=1)
        qk = torch.addcmul(qk * cos_M1E, torch.roll(qk, self.E // 2, dims=-1), sin_M1E)
        return qk[:, : self.H], qk[:, self.H :], qkv[:, self.H + self.K :]

    def finish(self, x_MD: Tensor, heads_MX: Tensor) -> Tensor:
        """Everything after attention: output projection, MLP, and their residuals."""
        x_MD = self.out.added_to(x_MD, heads_MX)
        gate, up = self.gate_up(self.norm_mlp(x_MD)).chunk(2, dim=-1)
        return self.down.added_to(x_MD, self.activation(gate) * up)


class Rotation:
    """Cosines and signed sines of positions, so that a rotation is x cos + roll(x) sin; from a table where possible.

    Some scalings (dynamic, longrope) have frequencies that depend on the longest row: they are computed every time.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self.fixed = getattr(module, "rope_type", None) in ("default", "linear", "llama3", "yarn")
        self._table: tuple[Tensor, Tensor] | None = None

    def __call__(self, x_MD: Tensor, positions_BT: Tensor, bound: int) -> tuple[Tensor, Tensor]:
        """(M, 1, E) each, for positions that are all below ``bound``."""
        cos_PE, sin_PE = self.table(x_MD, bound, positions_BT)
        if not self.fixed:
            return cos_PE[:, None], sin_PE[:, None]
        positions_M = positions_BT.reshape(-1)
        return cos_PE[positions_M][:, None], sin_PE[positions_M][:, None]

    def table(self, x_MD: Tensor, bound: int, positions_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        """(P, E) each: by position, for positions below ``bound``; if they are not fixed, those of ``positions_BT``."""
        if not self.fixed:
            assert positions_BT is not None
            return self._compute(x_MD, positions_BT)
        if self._table is None or len(self._table[0]) < bound:
            self._table = self._compute(x_MD, torch.arange(2 * bound, device=x_MD.device)[None])
        return self._table

    def _compute(self, x_MD: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        cos_ME, sin_ME = (part.flatten(0, 1) for part in self._module(x_MD, positions_BT))
        half = sin_ME.shape[-1] // 2
        return cos_ME, torch.cat([-sin_ME[..., :half], sin_ME[..., half:]], dim=-1)


class FusedExecution(Execution):
    """Forwards of one model of the Llama family; ``make_execution`` checks that they agree with the model's own."""

    name = "fused"
    shares = True

    def __init__(self, module: Any) -> None:
        start = time.perf_counter()
        decoder = module.model
        self.module = module
        self.rotation = Rotation(decoder.rotary_emb)
        self.layers = [self._layer(decoder.layers[n], n, window) for n, window in enumerate(windows_of(decoder))]
        self.norm = RMSNorm(decoder.norm)
        self.head = Linear(module.lm_head.weight, module.lm_head.bias)
        self._embed = decoder.embed_tokens
        self._levels = mask_levels(module.dtype, module.device)
        self._copied = any(product.copied for product in self._products())
        self._weights = self._fingerprint()
        self.prepare_s = time.perf_counter() - start

    def _layer(self, module: Any, number: int, window: int | None) -> Layer:
        return Layer(module, number, window)

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed copies of weights."""
        return sum(product.packed_bytes for product in self._products())

    def _products(self) -> list[Linear]:
        return [self.head, *(p for layer in self.layers for p in (layer.qkv, layer.out, layer.gate_up, layer.down))]

    def is_valid(self) -> bool:
        """Whether no adapter or hook was added since, and no weight that was copied has changed."""
        return can_fuse(self.module) is None and self._fingerprint() == self._weights

    def _fingerprint(self) -> list[tuple[int, int]]:
        """Address of each weight and, if some are copied, how often it was changed in place."""
        weights = self.module.parameters()
        return [(w.data_ptr(), w._version if self._copied and not w.is_inference() else 0) for w in weights]

    def run(self, call: Call) -> Tensor:
        embedded_BTD = call.tokens_BT if call.tokens_BT.is_floating_point() else self._embed(call.tokens_BT)
        inputs: dict[int, Tensor] = {}
        return self._output(self.run_layers(embedded_BTD, call, self.layers, inputs), inputs, call)

    def run_layers(
        self, x_BTD: Tensor, call: Call, layers: list[Layer], inputs: dict[int, Tensor] | None = None
    ) -> Tensor:
        """The hidden states after some layers, which store their keys and values.

        Args:
            inputs: gets the inputs (B, T, D) of the layers in ``call.outputs``, by number.
        """
        x_MD = x_BTD.flatten(0, 1)
        rotation = self.rotation(x_MD, call.positions(), call.num_positions)
        levels = self._levels if call.writer.shared is None else part_levels(x_MD.dtype, x_MD.device)
        masks = additive_masks(layers, call.mask(), levels)
        for layer in layers:
            if inputs is not None and layer.number in call.outputs.hidden:
                inputs[layer.number] = x_MD.view(x_BTD.shape)
            x_MD = layer(x_MD, rotation, masks[layer.window], call.writer)
        return x_MD.view(x_BTD.shape)

    def layer(self, number: int, call: Call) -> Tensor:
        """One layer's outputs (B, T, D) for the embeddings in a call; for `specdec.models.execution.agreement`."""
        return self.run_layers(call.tokens_BT, call, [self.layers[number]])

    def _output(self, x_BTD: Tensor, inputs: dict[int, Tensor], call: Call) -> Tensor:
        parts, last = [], slice(-call.num_logits, None)  # -0 keeps all
        if call.outputs.logits or NORMED in call.outputs.hidden:
            hidden_BTD = inputs[NORMED] = self.norm(x_BTD[:, last])
        if call.outputs.logits:
            parts.append(self.head(hidden_BTD.flatten(0, 1)).view(*hidden_BTD.shape[:2], -1))
        parts += [inputs[number][:, last] for number in call.outputs.hidden]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


class OneLayer(FusedExecution):
    """A single layer, prepared by itself."""

    def __init__(self, module: Any, layer: Layer) -> None:
        self.module, self.layers = module, [layer]
        self.rotation = Rotation(module.model.rotary_emb)
        self._levels = mask_levels(layer.qkv.weight_OI.dtype, module.device)


def mask_levels(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """What is added to the attention score of a visible column, and of a masked one."""
    shown = torch.zeros((), dtype=dtype, device=device)
    return shown, torch.full_like(shown, torch.finfo(dtype).min)


def additive_masks(layers: list[Layer], mask_BTS: Tensor, levels: tuple[Tensor, Tensor]) -> dict[int | None, Tensor]:
    """Masks (B, 1, G T, S) by window, for queries folded by key head."""
    groups = layers[0].H // layers[0].K
    return {
        window: folded_mask(mask_BTS if window is None else within_window(mask_BTS, window), groups, levels)
        for window in {layer.window for layer in layers}
    }


def folded_mask(mask_BTS: Tensor, groups: int, levels: tuple[Tensor, Tensor]) -> Tensor:
    """(B, 1, G T, S): what is added to the scores of queries folded by key head, of ``groups`` query heads each."""
    B, T, S = mask_BTS.shape
    seen_B1GTS = mask_BTS[:, None, None].expand(B, 1, groups, T, S)
    return torch.where(seen_B1GTS, *levels).view(B, 1, groups * T, S)


def _attend(
    layer: Layer,
    q_MHE: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    size: tuple[int, int],
    shared: SharedColumns | None,
) -> Tensor:
    """Attention (M, H E) of queries folded by key head: no key is repeated for the heads that share it."""
    (B, T), H, K, E = size, layer.H, layer.K, layer.E
    groups = H // K
    folded = q_MHE.view(B, T, K, groups, E).permute(0, 2, 3, 1, 4).reshape(B, K, groups * T, E)
    if shared is None:
        mixed = scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=layer.scale)
    else:
        mixed = attend_shared(folded, (keys, values), mask, layer.scale, shared, layer.number)
    return mixed.reshape(B, K, groups, T, E).permute(0, 3, 1, 2, 4).reshape(B * T, H * E)
