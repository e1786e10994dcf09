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
    WantedStruct,
    library,
    rms_norm,
    run_forward,
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
        self.rotation, self._norm = Rotation(decoder.rotary_emb), decoder.norm
        self._table = getattr(decoder.embed_tokens, "weight", None)  # an EAGLE layer has none
        self._vocab, self._hidden = module.lm_head.out_features, module.config.hidden_size
        self._norm_D, self._weights = self._norm.weight, self._fingerprint()
        self._matrices: list[PackedMatrix] = []
        structs = [self._layer(layer, window) for layer, window in zip(layers, windows_of(decoder), strict=True)]
        self._head = self._pack(module.lm_head)
        attention = layers[0].self_attn
        self._model = ModelStruct(
            vocab=self._vocab,
            hidden=self._hidden,
            heads=attention.q_proj.out_features // attention.head_dim,
            key_heads=attention.k_proj.out_features // attention.head_dim,
            head_size=attention.head_dim,
            intermediate=layers[0].mlp.gate_proj.out_features,
            num_layers=len(structs),
            layers=(LayerStruct * len(structs))(*structs),
            embedding=None if self._table is None else self._table.data_ptr(),
            norm=self._norm.weight.data_ptr(),
            eps=self._norm.variance_epsilon,
            head=self._head.handle,
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
        B, T = call.tokens_BT.shape[:2]
        num_logits = 0 if call.output_kind == "hidden" else self._vocab  # per token
        num_hidden = 0 if call.output_kind == "logits" else self._hidden
        count, size = call.num_logits or T, num_logits + num_hidden
        make = torch.empty if call.real_BT is None else torch.zeros
        output_BTX = make(B, count, size)
        address = output_BTX.data_ptr()
        hidden_address = address + 4 * num_logits if num_hidden else None
        wanted = WantedStruct(address if num_logits else None, hidden_address, count, size)
        self._forward(call, wanted, (0, self._model.num_layers))
        return output_BTX

    def layer(self, number: int, call: Call) -> Tensor:
        """One layer's outputs (B, T, D) for the embeddings in a call; for `specdec.models.execution.agreement`."""
        states_BTD = torch.zeros_like(call.tokens_BT)
        self._forward(call, WantedStruct(), (number, number + 1), states_BTD)
        return states_BTD

    def norm(self, x_BTD: Tensor) -> Tensor:
        """The last norm."""
        normed_MD = rms_norm(x_BTD.flatten(0, -2).contiguous(), self._norm.weight, self._norm.variance_epsilon)
        return normed_MD.view(x_BTD.shape)

    def head(self, x_MD: Tensor) -> Tensor:
        """Logits (M, V)."""
        return self._head(x_MD, torch.get_num_threads())

    def _forward(
        self, call: Call, wanted: WantedStruct, layers: tuple[int, int], states_BTD: Tensor | None = None
    ) -> None:
        writer, chains = call.writer, isinstance(call.layout, Chains)
        tokens, real_BT = call.tokens_BT.contiguous(), call.real_BT
        B, T = tokens.shape[:2]
        mask_BTS = None if chains else call.mask().contiguous()
        positions_BT = None if chains and self.rotation.fixed else call.positions().contiguous()
        if mask_BTS is not None and mask_BTS.shape != (B, T, writer.num_columns):
            raise ContractError(f"native execution: a mask {tuple(mask_BTS.shape)} for {(B, T, writer.num_columns)}")
        cosines, sines = self.rotation.table(self._norm_D, writer.num_columns, positions_BT)
        if not self.rotation.fixed:  # a table of this call's own positions
            positions_BT = torch.arange(B * T)
        real_BT = None if real_BT is None else real_BT.contiguous()
        place, embedded = writer.place, tokens.is_floating_point()
        data_NBHSD = place.storage.data_NBHSD
        batch = BatchStruct(
            rows=B,
            width=T,
            columns=writer.num_columns,
            ids=None if embedded else tokens.data_ptr(),
            embedded=tokens.data_ptr() if embedded else None,
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
            num_positions=cosines.shape[0],
        )
        run_forward(self._model, batch, wanted, layers, torch.get_num_threads(), states_BTD)
        writer.written()
