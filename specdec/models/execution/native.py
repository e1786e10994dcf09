"""Native execution: the forward of the Llama family as one call of a library in C++, built on the user's machine.

Rows are ragged: padding is not computed. A row's numbers are the same bits alone and in any batch, for any number of
tokens at once, in any layout and with any number of threads (specdec/models/native says how). float32 on a CPU.

Shape letters: B rows, T tokens fed, M real tokens of all rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

import time
from ctypes import c_int64
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from specdec.core.outputs import NORMED
from specdec.errors import ContractError
from specdec.models.execution.base import Call, Chains, Execution
from specdec.models.execution.fusable import can_fuse, changed, no_plain_weight, windows_of
from specdec.models.execution.fused import Rotation
from specdec.models.native.build import NotBuiltError
from specdec.models.native.library import (
    BatchStruct,
    LayerStruct,
    ModelStruct,
    PackedMatrix,
    PrefixStruct,
    WantedStruct,
    checked,
    library,
    rms_norm,
    run_forward,
)
from specdec.models.shared import SharedColumns

_packed: WeakValueDictionary[tuple[Any, ...], PackedMatrix] = WeakValueDictionary()
"""Matrices in use: drafts that are a part of their target share its packed weights."""


def no_native(module: Any) -> str | None:
    """Why a model cannot be run natively; None if it can."""
    if module.device.type != "cpu" or module.dtype != torch.float32:
        return f"it computes in float32 on a CPU, not in {str(module.dtype).removeprefix('torch.')} on {module.device}"
    reason = can_fuse(module) or _another_activation(module) or _another_size(module)
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


def _another_size(module: Any) -> str | None:
    """The first weight whose shape does not follow from the sizes of layer 0 and the hidden size."""
    hidden, first = module.config.hidden_size, module.model.layers[0]
    size = first.self_attn.head_dim
    queries, keys, inner = (
        len(p.weight) for p in (first.self_attn.q_proj, first.self_attn.k_proj, first.mlp.gate_proj)
    )
    if size % 2 or queries % size or keys % size or queries % keys:
        return f"it needs query heads that share key heads evenly, not {queries} and {keys} numbers in heads of {size}"
    shapes: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (hidden,)),
        **dict.fromkeys(("self_attn.q_norm", "self_attn.k_norm"), (size,)),
        **{f"self_attn.{name}_proj": (rows, hidden) for name, rows in (("q", queries), ("k", keys), ("v", keys))},
        "self_attn.o_proj": (hidden, queries),
        **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), (inner, hidden)),
        "mlp.down_proj": (hidden, inner),
    }
    parts = [
        ("model.norm", module.model.norm, (hidden,)),
        ("lm_head", module.lm_head, (len(module.lm_head.weight), hidden)),
    ]
    for number, layer in enumerate(module.model.layers):
        own = dict(layer.named_modules())
        parts += [(f"model.layers.{number}.{name}", own[name], shape) for name, shape in shapes.items() if name in own]
    for name, part, shape in parts:
        bias = getattr(part, "bias", None)
        if part.weight.shape != shape or (bias is not None and bias.shape != shape[:1]):
            return f"it knows layers of one size, and {name} is {tuple(part.weight.shape)} in place of {shape}"
    return None


def _plain_table(module: Any) -> Tensor | None:
    """The embeddings (V, D) if they can be read directly; other modules are called."""
    part, weight = module.model.embed_tokens, getattr(module.model.embed_tokens, "weight", None)
    if weight is None or changed(part, nn.Embedding) or no_plain_weight(part) or part.max_norm is not None:
        return None
    expected = (len(module.lm_head.weight), module.config.hidden_size)
    plain = weight.shape == expected and weight.dtype == torch.float32 and weight.device.type == "cpu"
    return weight.detach() if plain and weight.is_contiguous() else None


class NativeExecution(Execution):
    """Forwards of one model of the Llama family; ``make_execution`` checks that they agree with the model's own."""

    name = "native"
    ragged = shares = picks_columns = True

    def __init__(self, module: Any) -> None:
        start = time.perf_counter()
        self.module = module
        decoder, layers = module.model, module.model.layers[: module.config.num_hidden_layers]
        self.rotation, self._norm = Rotation(decoder.rotary_emb), decoder.norm
        self._embed, self._table = decoder.embed_tokens, _plain_table(module)
        self._vocab, self._hidden = module.lm_head.out_features, module.config.hidden_size
        self._read = [] if self._table is None else [self._table]  # kept, because the library has their addresses
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
            norm=self._address(self._norm),
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
        weights = [None if norm is None else self._address(norm) for norm in norms]
        epsilons = [0.0 if norm is None else norm.variance_epsilon for norm in norms]
        handles = [matrix.handle for matrix in matrices]
        return LayerStruct(*handles, *weights, *epsilons, attention.scaling, window or 0)

    def _address(self, norm: Any) -> int:
        self._read.append(norm.weight.detach().contiguous())
        return self._read[-1].data_ptr()

    def _pack(self, *parts: Any) -> PackedMatrix:
        pairs = [(part.weight, part.bias) for part in parts]
        key = tuple((w.shape, *map(_state, (w, b))) for w, b in pairs)
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
        return [_state(weight) for weight in self.module.parameters()]

    def run(self, call: Call) -> Tensor:
        B, T = call.tokens_BT.shape[:2]
        num_logits, numbers = self._vocab if call.outputs.logits else 0, call.outputs.hidden
        count, size = call.num_logits or T, num_logits + len(numbers) * self._hidden  # of tokens, and per token
        if not 0 <= count <= T:
            raise ContractError(f"native execution: logits of {count} tokens are wanted, and {T} are fed")
        make = torch.empty if call.real_BT is None else torch.zeros
        output_BTX = make(B, count, size)
        address = output_BTX.data_ptr()
        last = self._model.num_layers
        wanted = WantedStruct(
            logits=address if num_logits else None,
            hidden=address + 4 * num_logits,
            numbers=(c_int64 * len(numbers))(*(last if number == NORMED else number for number in numbers)),
            num_hidden=len(numbers),
            count=count,
            stride=size,
        )
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
        writer, chains, E = call.writer, isinstance(call.layout, Chains), self._model.head_size
        place = writer.place
        tokens, B, T = call.tokens_BT, *call.tokens_BT.shape[:2]
        if not tokens.is_floating_point() and self._table is None:
            tokens = self._embed(tokens)
        embedded = tokens.is_floating_point()
        if embedded:
            tokens = checked("embeddings", tokens, torch.float32, (B, T, self._model.hidden))
        else:
            tokens = checked("ids", tokens, torch.int64, (B, T))
        real_BT = None if call.real_BT is None else checked("real tokens", call.real_BT, torch.bool, (B, T))
        mask_BTS = None if chains else checked("a mask", call.mask(), torch.bool, (B, T, writer.num_columns))
        positions_BT = None
        if not (chains and self.rotation.fixed):
            positions_BT = checked("positions", call.positions(), torch.int64, (B, T))
        cosines, sines = self.rotation.table(self._norm_D, call.num_positions, positions_BT)
        if cosines.shape[1] != E:
            raise ContractError(f"native execution: rotations of {cosines.shape[1]} numbers in heads of {E}")
        if not self.rotation.fixed:  # a table of this call's own positions
            positions_BT = torch.arange(B * T)
        slots_B, starts_B = (checked("slots", part, torch.int64, (B,)) for part in (place.slots_B, place.starts_B))
        data_NBHSD = place.storage.data_NBHSD
        parts, slots, _, capacity, _ = data_NBHSD.shape
        shape = (max(parts, 2 * layers[1]), slots, self._model.key_heads, capacity, E)
        _check_storage(data_NBHSD, shape)
        shared = writer.shared
        batch = BatchStruct(
            rows=B,
            width=T,
            columns=writer.num_columns - (shared.width if shared else 0),
            ids=None if embedded else tokens.data_ptr(),
            embedded=tokens.data_ptr() if embedded else None,
            real=None if real_BT is None else real_BT.data_ptr(),
            slots=slots_B.data_ptr(),
            starts=starts_B.data_ptr(),
            positions=None if positions_BT is None else positions_BT.data_ptr(),
            mask=None if mask_BTS is None else mask_BTS.data_ptr(),
            cache=data_NBHSD.data_ptr(),
            num_slots=slots,
            capacity=capacity,
            cosines=cosines.data_ptr(),
            sines=sines.data_ptr(),
            num_positions=cosines.shape[0],
            **({} if shared is None else self._shared(shared, B, layers[1])),
        )
        run_forward(self._model, batch, wanted, layers, torch.get_num_threads(), states_BTD)
        writer.written()

    def _shared(self, shared: SharedColumns, B: int, num_layers: int) -> dict[str, Any]:
        """The fields of a batch whose rows share columns; the tensors that they point to are kept by ``shared``."""
        structs, levels = [], shared.paths_BL.shape[1]
        for storage, start in zip(shared.storages, shared.starts, strict=True):
            parts, _, _, capacity, E = storage.data_NBHSD.shape
            _check_storage(storage.data_NBHSD, (max(parts, 2 * num_layers), 1, self._model.key_heads, capacity, E))
            structs.append(PrefixStruct(storage.data_NBHSD.data_ptr(), capacity, start))
        return {
            "prefixes": (PrefixStruct * len(structs))(*structs),
            "num_prefixes": len(structs),
            "levels": levels,
            "shared": shared.width,
            "paths": checked("prefixes", shared.paths_BL, torch.int64, (B, levels)).data_ptr(),
            "prefix_lengths": checked("their lengths", shared.lengths_B, torch.int64, (B,)).data_ptr(),
        }


def _check_storage(data_NBHSD: Tensor, shape: tuple[int, ...]) -> None:
    if checked("a storage", data_NBHSD, torch.float32, shape) is not data_NBHSD:
        raise ContractError("native execution: a storage that is not contiguous")


def _state(weight: Tensor | None) -> tuple[int, int]:
    """Address of a weight, and how often it was changed in place."""
    return (0, 0) if weight is None else (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
