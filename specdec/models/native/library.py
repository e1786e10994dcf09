"""The functions of the native library, and packed matrices, for Python. Memory is torch's; it is passed by address."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_char_p, c_float, c_int, c_int64, c_void_p
from functools import cache
from typing import Any
from weakref import finalize

import torch
from torch import Tensor

from specdec.errors import ContractError
from specdec.models.native.build import library_path

FORMATS = ("float32", "bfloat16", "float16", "q8_0", "q4_1")
"""How the numbers of a matrix are stored."""


class _Part(Structure):
    _fields_ = (("weight", c_void_p), ("bias", c_void_p), ("rows", c_int64))


class LayerStruct(Structure):
    """`Layer` of forward.cpp."""

    _fields_ = (
        *((name, c_void_p) for name in ("qkv", "out", "gate_up", "down")),
        *((name, c_void_p) for name in ("norm_in", "norm_mlp", "norm_q", "norm_k")),
        *((name, c_float) for name in ("eps_in", "eps_mlp", "eps_q", "eps_k", "scale")),
        ("window", c_int64),
    )


class ModelStruct(Structure):
    """`Model` of forward.cpp."""

    _fields_ = (
        *((n, c_int64) for n in ("vocab", "hidden", "heads", "key_heads", "head_size", "intermediate", "num_layers")),
        ("layers", POINTER(LayerStruct)),
        *((name, c_void_p) for name in ("embedding", "norm")),
        ("eps", c_float),
        ("head", c_void_p),
    )


class PrefixStruct(Structure):
    """`Prefix` of tokens.h."""

    _fields_ = (("cache", c_void_p), ("capacity", c_int64), ("start", c_int64))


class BatchStruct(Structure):
    """`Batch` of tokens.h."""

    _fields_ = (
        *((name, c_int64) for name in ("rows", "width", "columns")),
        *((name, c_void_p) for name in ("ids", "embedded", "real", "slots", "starts", "positions", "mask", "cache")),
        *((name, c_int64) for name in ("num_slots", "capacity")),
        *((name, c_void_p) for name in ("cosines", "sines")),
        ("num_positions", c_int64),
        ("prefixes", POINTER(PrefixStruct)),
        *((name, c_int64) for name in ("num_prefixes", "levels", "shared")),
        *((name, c_void_p) for name in ("paths", "prefix_lengths")),
    )


class WantedStruct(Structure):
    """`Wanted` of forward.cpp."""

    _fields_ = (
        *((name, c_void_p) for name in ("logits", "hidden")),
        ("numbers", POINTER(c_int64)),
        *((name, c_int64) for name in ("num_hidden", "count", "stride")),
    )


@cache
def library() -> Any:
    """The loaded library, with the types of its functions.

    Raises:
        NotBuiltError: it cannot be built.
    """
    loaded = ctypes.CDLL(str(library_path()))
    signatures: dict[str, tuple[Any, ...]] = {
        "message": (c_char_p,),
        "lanes": (c_int,),
        "pack": (c_void_p, POINTER(_Part), c_int64, c_int64),
        "free": (None, c_void_p),
        "bytes": (c_int64, c_void_p),
        "format": (c_int, c_void_p),
        "product": (c_int, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int),
        "norm": (None, c_void_p, c_void_p, c_int64, c_int64, c_float, c_void_p),
        "forward": (
            *(c_int, POINTER(ModelStruct), POINTER(BatchStruct), c_int64, c_int64, c_void_p),
            *(POINTER(WantedStruct), c_int),
        ),
    }
    for name, (result, *arguments) in signatures.items():
        function = getattr(loaded, f"specdec_{name}")
        function.restype, function.argtypes = result, arguments
    return loaded


def check(refused: int) -> None:
    """Raise what the library refused.

    Raises:
        ContractError: an index or a size was out of range.
    """
    if refused:
        raise ContractError(f"native execution: {library().specdec_message().decode()}")


def checked(what: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The tensor as the library reads it: contiguous, on the CPU, of this format and shape.

    Raises:
        ContractError: it is another one.
    """
    if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_cpu:
        raise ContractError(
            f"native execution: {what} {tuple(tensor.shape)} in {tensor.dtype} on {tensor.device}, "
            f"needed is {shape} in {dtype} on the CPU"
        )
    return tensor.contiguous()


class PackedMatrix:
    """Rows of one or several weights, (outputs, inputs) each, packed together in the smallest lossless format."""

    def __init__(self, *parts: tuple[Tensor, Tensor | None]) -> None:
        inputs, kept = parts[0][0].shape[1], []
        for weight, bias in parts:
            rows = len(weight)
            weight = checked("a weight", weight.detach(), torch.float32, (rows, inputs))
            kept.append((weight, None if bias is None else checked("a bias", bias.detach(), torch.float32, (rows,))))
        structs = [_Part(w.data_ptr(), None if b is None else b.data_ptr(), len(w)) for w, b in kept]
        self.inputs, self.outputs = inputs, sum(len(weight) for weight, _ in kept)
        self._sources = parts  # kept, because callers look for matrices by the addresses of their weights
        self.handle: int | None = library().specdec_pack((_Part * len(structs))(*structs), len(structs), inputs)
        check(self.handle is None)
        finalize(self, library().specdec_free, self.handle).atexit = False

    @property
    def num_bytes(self) -> int:
        """Bytes of the packed numbers."""
        return int(library().specdec_bytes(self.handle))

    @property
    def format(self) -> str:
        """One of FORMATS."""
        return FORMATS[library().specdec_format(self.handle)]

    def __call__(self, x_MI: Tensor, threads: int) -> Tensor:
        """x W^T + bias, of a matrix of one part."""
        x_MI = checked("inputs", x_MI, torch.float32, (len(x_MI), self.inputs))
        y_MO = x_MI.new_empty(len(x_MI), self.outputs)
        check(
            library().specdec_product(self.handle, x_MI.data_ptr(), y_MO.data_ptr(), len(x_MI), self.outputs, threads)
        )
        return y_MO


def rms_norm(x_MD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, per row."""
    x_MD = checked("inputs", x_MD, torch.float32, (len(x_MD), len(weight_D)))
    y_MD = torch.empty_like(x_MD)
    library().specdec_norm(x_MD.data_ptr(), weight_D.data_ptr(), *x_MD.shape, eps, y_MD.data_ptr())
    return y_MD


def run_forward(
    model: ModelStruct,
    batch: BatchStruct,
    wanted: WantedStruct,
    layers: tuple[int, int],
    threads: int,
    states_BTD: Tensor | None = None,
) -> None:
    """Layers from the first up to the second, the last norm and the head, for what is wanted.

    Args:
        states_BTD: gets the outputs of the last of these layers.

    Raises:
        ContractError: an index was out of range.
    """
    states = None if states_BTD is None else states_BTD.data_ptr()
    check(library().specdec_forward(byref(model), byref(batch), *layers, states, byref(wanted), threads))
