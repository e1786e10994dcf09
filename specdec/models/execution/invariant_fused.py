"""The invariant execution by the operations of the fused one.

Shape letters: B rows, T tokens per row, M tokens of the list, D hidden size, H query heads, K key heads, E head size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from specdec.core.outputs import NORMED
from specdec.models.execution.base import Call
from specdec.models.execution.fused import FusedExecution, Layer, RMSNorm
from specdec.models.execution.invariant import Heads, Invariant, Operation, Part, rectangle
from specdec.models.execution.linear import Linear
from specdec.models.execution.packed import Packed, pack
from specdec.models.masks import within_window


class InvariantFused(Invariant, FusedExecution):
    """The operations of the fused execution on lists of tokens."""

    def run_list(self, packed: Packed, call: Call, wanted_M: Tensor) -> Tensor:
        tokens = call.tokens_BT.flatten(0, 1)[packed.index_M]
        x_MD = tokens if tokens.is_floating_point() else self._embed(tokens)
        inputs: dict[int, Tensor] = {}
        inputs[NORMED] = self.norm(self._run(x_MD, packed, call, self.layers, inputs)[wanted_M])
        parts = [self.head(inputs[NORMED])] if call.outputs.logits else []
        parts += [inputs[n] if n == NORMED else inputs[n][wanted_M] for n in call.outputs.hidden]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _run(
        self,
        x_MD: Tensor,
        packed: Packed,
        call: Call,
        layers: list[Layer],
        inputs: dict[int, Tensor] | None = None,
    ) -> Tensor:
        """The hidden states after some layers, whose keys and values are stored; ``inputs`` as in ``run_layers``."""
        positions_1M = call.positions().flatten()[packed.index_M][None]
        rotation = self.rotation(x_MD, positions_1M, call.num_positions)
        seen_NLW = packed.mask()
        windows = {layer.window for layer in layers}
        masks = {w: (seen_NLW if w is None else within_window(seen_NLW, w))[:, None] for w in windows}
        for layer in layers:
            if inputs is not None and layer.number in call.outputs.hidden:
                inputs[layer.number] = x_MD
            q_MHE, k_MKE, v_MKE = layer.project(x_MD, *rotation)
            keys, values = (
                packed.write(2 * layer.number + i, part.transpose(0, 1)[None]) for i, part in enumerate((k_MKE, v_MKE))
            )
            mixed = packed.attend(q_MHE.transpose(0, 1)[None], keys, values, masks[layer.window], layer.scale)
            x_MD = layer.finish(x_MD, mixed.flatten(1))
        return x_MD

    def run_layers(
        self, x_BTD: Tensor, call: Call, layers: list[Layer], inputs: dict[int, Tensor] | None = None
    ) -> Tensor:
        parts = []
        for packed in pack(call, self.classes):
            x_MD = self._run(x_BTD.flatten(0, 1)[packed.index_M], packed, call, layers)
            parts.append(Part(packed, np.arange(packed.num_tokens), x_MD[: packed.num_tokens]))
        return rectangle(parts, call, x_BTD.shape[1], x_BTD.shape[2])

    def sizes(self) -> tuple[int, int]:
        num_logits, num_hidden = self.head.weight_OI.shape
        return num_logits, num_hidden

    def operations(self) -> list[Operation]:
        layer = self.layers[0]

        def gated(x_MX: Tensor) -> Tensor:
            gate, up = x_MX.chunk(2, dim=-1)
            product: Tensor = layer.activation(gate) * up
            return product

        made = [
            _norm("norm", self.norm, self.norm.weight.shape),
            *(_product(name, part) for name, part in (("qkv", layer.qkv), ("gate_up", layer.gate_up))),
            _product("head", self.head),
            *(_product(name, part, added=True) for name, part in (("out", layer.out), ("down", layer.down))),
            Operation("activation", gated, (len(layer.gate_up.weight_OI),), 0, in_float32=lambda: gated),
        ]
        return made if layer.norm_q is None else [*made, _norm("query norm", layer.norm_q, (layer.H, layer.E))]

    def heads(self) -> list[Heads]:
        return list({Heads(each.H, each.K, each.E, each.E, each.scale): None for each in self.layers})


def _norm(name: str, norm: RMSNorm, shape: tuple[int, ...]) -> Operation:
    def in_float32(x: Tensor) -> Tensor:
        return torch.rms_norm(x, x.shape[-1:], None, norm.eps)

    return Operation(name, norm, tuple(shape), 0, in_float32=lambda: in_float32)


def _product(name: str, product: Linear, *, added: bool = False) -> Operation:
    def with_weight(weight_OI: Tensor) -> Callable[[Tensor], Tensor]:
        other = Linear(weight_OI, None if product.bias_O is None else torch.zeros_like(product.bias_O))
        if not added:
            return other
        return lambda x_MI: other.added_to(x_MI.new_zeros(len(x_MI), len(weight_OI)), x_MI)

    size = product.weight_OI.shape[1]
    return Operation(name, product, (size,), product.weight_OI.numel(), with_weight)
