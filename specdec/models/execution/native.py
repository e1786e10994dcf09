"""Native execution: the forward of the Llama family as one call of a library in C++, built on the user's machine.

Rows are ragged: padding is not computed. A row's numbers are the same bits alone and in any batch, for any number of
tokens at once, in any layout and with any number of threads (specdec/models/native says how). float32 on a CPU.

Shape letters: B rows, T tokens fed, M real tokens of all rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

import time
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from specdec.errors import ContractError
from specdec.models.execution.base import Call, Chains, Execution
from specdec.models.execution.fusable import can_fuse, windows_of
from specdec.models.execution.fused import Rotation
from specdec.models.native.build import NotBuiltError
from specdec.models.native.library import (
    BatchStruct,
    LayerStruct,
    ModelStruct,
    PackedMatrix,
    library,
    rms_norm,
    run_layers,
)

_packed: WeakValueDictionary[tuple[Any, ...], PackedMatrix] = WeakValueDictionary()
"""Matrices in use: drafts that are a part of their target share its packed weights."""


def no_native(module: Any) -> str | None:
    """Why a model cannot be run natively; None if it can."""
    if module.device.type != "cpu" or module.dtype != torch.float32:
        return f"it computes in float32 on a CPU, not in {str(module.dtype).removeprefix('torch.')} on {module.device}"
    reason = can_fuse(module) or _another_activation(module)
    if reason is not None:
        return reason
    try:
        library()
    except NotBuiltError as error:
        return str(error)
    return None


def _another_activation(module: Any) -> str | None:
    for number, layer in enumerate(module.model.layers):
        kind = type(layer.mlp.act_fn)
        if kind not in (nn.SiLU, SiLUActivation):
            return f"it knows the activation SiLU, and that of layer {number} is {kind.__name__}"
    return None


class NativeExecution(Execution):
    """Forwards of one model of the Llama family; ``make_execution`` checks that they agree with the model's own."""

    name = "native"
    ragged = True

    def __init__(self, module: Any) -> None:
        start = time.perf_counter()
        self.module = module
        decoder, layers = module.model, module.model.layers[: module.config.num_hidden_layers]
        self._embed, self.rotation = decoder.embed_tokens, Rotation(decoder.rotary_emb)
        self._norm, self._weights = decoder.norm, self._fingerprint()
        self._matrices: list[PackedMatrix] = []
        structs = [self._layer(layer, window) for layer, window in zip(layers, windows_of(decoder), strict=True)]
        self._head = self._pack(module.lm_head)
        attention = layers[0].self_attn
        self._model = ModelStruct(
            hidden=module.config.hidden_size,
            heads=attention.q_proj.out_features // attention.head_dim,
            key_heads=attention.k_proj.out_features // attention.head_dim,
            head_size=attention.head_dim,
            intermediate=layers[0].mlp.gate_proj.out_features,
            num_layers=len(structs),
            layers=(LayerStruct * len(structs))(*structs),
        )
        self.prepare_s = time.perf_counter() - start

    def _layer(self, layer: Any, window: int | None) -> LayerStruct:
        attention, mlp = layer.self_attn, layer.mlp
        norms = (
            *(layer.input_layernorm, layer.post_attention_layernorm),
            *(getattr(attention, name, None) for name in ("q_norm", "k_norm")),
        )
        matrices = (
            self._pack(attention.q_proj, attention.k_proj, attention.v_proj),
            self._pack(attention.o_proj),
            self._pack(mlp.gate_proj, mlp.up_proj),
            self._pack(mlp.down_proj),
        )
        weights = [None if norm is None else norm.weight.data_ptr() for norm in norms]
        epsilons = [0.0 if norm is None else norm.variance_epsilon for norm in norms]
        handles = [matrix.handle for matrix in matrices]
        return LayerStruct(*handles, *weights, *epsilons, attention.scaling, window or 0)

    def _pack(self, *parts: Any) -> PackedMatrix:
        pairs = [(part.weight, part.bias) for part in parts]
        key = tuple((w.data_ptr(), w._version, w.shape, b is not None and b.data_ptr()) for w, b in pairs)
        matrix = _packed.get(key)
        if matrix is None:
            matrix = _packed[key] = PackedMatrix(*pairs)
        self._matrices.append(matrix)
        return matrix

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed weights."""
        return sum(matrix.num_bytes for matrix in self._matrices)

    @property
    def formats(self) -> list[str]:
        """The formats that weights are kept in."""
        return sorted({matrix.format for matrix in self._matrices})

    def is_valid(self) -> bool:
        return can_fuse(self.module) is None and self._fingerprint() == self._weights

    def _fingerprint(self) -> list[tuple[int, int]]:
        """Address of each weight, and how often it was changed in place."""
        return [(w.data_ptr(), 0 if w.is_inference() else w._version) for w in self.module.parameters()]

    def run(self, call: Call) -> Tensor:
        tokens = call.tokens_BT
        embedded = tokens if tokens.is_floating_point() else self._embed(tokens)
        B, T, D = embedded.shape
        real_M = None if call.real_BT is None else call.real_BT.flatten()
        x_MD = embedded.reshape(B * T, D)
        x_MD = x_MD.clone() if real_M is None else x_MD[real_M]
        self._run_layers(x_MD, call, 0, self._model.num_layers)
        return self._output(x_MD, call, real_M, B, T)

    def layer(self, number: int, call: Call) -> Tensor:
        """One layer's outputs (B, T, D) for the embeddings in a call; for `specdec.models.execution.agreement`."""
        x_MD = call.tokens_BT.flatten(0, 1).clone()
        self._run_layers(x_MD, call, number, number + 1)
        return x_MD.view(call.tokens_BT.shape)

    def norm(self, x_BTD: Tensor) -> Tensor:
        """The last norm."""
        normed_MD = rms_norm(x_BTD.flatten(0, -2).contiguous(), self._norm.weight, self._norm.variance_epsilon)
        return normed_MD.view(x_BTD.shape)

    def head(self, x_MD: Tensor) -> Tensor:
        """Logits (M, V)."""
        return self._head(x_MD, torch.get_num_threads())

    def _run_layers(self, x_MD: Tensor, call: Call, first: int, last: int) -> None:
        """Layers ``first`` to ``last`` - 1 over the hidden states of the real tokens, in place."""
        writer, chains = call.writer, isinstance(call.layout, Chains)
        B, T = call.tokens_BT.shape[:2]
        mask_BTS = None if chains else call.mask().contiguous()
        positions_BT = None if chains and self.rotation.fixed else call.positions().contiguous()
        cosines, sines = self.rotation.table(x_MD, writer.num_columns, positions_BT)
        if not self.rotation.fixed:  # a table of this call's own positions
            positions_BT = torch.arange(B * T)
        if mask_BTS is not None and mask_BTS.shape != (B, T, writer.num_columns):
            raise ContractError(f"native execution: a mask {tuple(mask_BTS.shape)} for {(B, T, writer.num_columns)}")
        real_BT = None if call.real_BT is None else call.real_BT.contiguous()
        place = writer.place
        data_NBHSD = place.storage.data_NBHSD
        batch = BatchStruct(
            rows=B,
            width=T,
            columns=writer.num_columns,
            real=None if real_BT is None else real_BT.data_ptr(),
            slots=place.slots_B.data_ptr(),
            starts=place.starts_B.data_ptr(),
            positions=None if positions_BT is None else positions_BT.data_ptr(),
            mask=None if mask_BTS is None else mask_BTS.data_ptr(),
            cache=data_NBHSD.data_ptr(),
            num_slots=data_NBHSD.shape[1],
            capacity=data_NBHSD.shape[3],
            cosines=cosines.data_ptr(),
            sines=sines.data_ptr(),
            num_positions=len(cosines),
        )
        run_layers(self._model, batch, x_MD, first, last, torch.get_num_threads())
        writer.written()

    def _output(self, x_MD: Tensor, call: Call, real_M: Tensor | None, B: int, T: int) -> Tensor:
        """Norm and head of the last positions; zeros for padding."""
        count = call.num_logits or T
        wanted_M = torch.ones(B * T, dtype=torch.bool) if real_M is None else real_M.clone()
        wanted_M.view(B, T)[:, : T - count] = False
        if count < T:
            x_MD = x_MD[wanted_M if real_M is None else wanted_M[real_M]]
        hidden_MD = self.norm(x_MD)
        parts = [] if call.output_kind == "hidden" else [self.head(hidden_MD)]
        parts += [] if call.output_kind == "logits" else [hidden_MD]
        out_MX = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        if len(out_MX) < B * count:
            spread = out_MX.new_zeros(B * count, out_MX.shape[-1])
            spread[wanted_M.view(B, T)[:, T - count :].flatten()] = out_MX
            out_MX = spread
        return out_MX.view(B, count, -1)
