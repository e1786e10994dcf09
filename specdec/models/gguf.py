"""GGUF files: weights, config, tokenizer and chat template in one file, which `transformers` reads and dequantises.

The model that runs is the dequantised one, in the run's dtype. The header is read here first, so that files that the
loader of `transformers` would truncate or change are refused with the reason.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from specdec.errors import ConfigError, PairError

SUFFIX = ".gguf"
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32
_PART = re.compile(r"-\d{5}-of-\d{5}$")
_SPECIAL_TOKENS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
_ROTARY_TABLES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def is_gguf(name: str | None) -> bool:
    """Whether a checkpoint's name is that of a GGUF file."""
    return name is not None and name.lower().endswith(SUFFIX)


@dataclass(frozen=True, slots=True)
class Header:
    """What the beginning of a GGUF file says; arrays of its metadata are left out."""

    metadata: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]  # of the tensors, innermost dimension first
    num_bytes: int  # of the whole file

    @property
    def num_weights(self) -> int:
        """Number of weights in all tensors."""
        return sum(prod(shape) for shape in self.shapes.values())


def read_header(path: Path) -> Header:
    """Read metadata and tensor table, without the tensors.

    Raises:
        ValueError: it is no GGUF file, or ends before its tensors do. OSError: it cannot be read.
    """
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    with path.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as blob:
        if blob[:4] != b"GGUF":
            raise ValueError("it does not begin as a GGUF file does")
        try:
            cursor = _Cursor(blob)
            version, num_tensors, num_keys = cursor.take("IQQ")
            if version not in (2, 3):
                raise ValueError(f"format version {version} is not supported (2 and 3 are)")
            metadata = {cursor.string(): cursor.value() for _ in range(num_keys)}
            shapes, end = {}, 0
            for _ in range(num_tensors):
                name = cursor.string()
                shapes[name] = cursor.take(f"{cursor.take('I')[0]}Q")
                kind, offset = cursor.take("IQ")
                values, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
                end = max(end, offset + prod(shapes[name]) // values * size)
        except (struct.error, IndexError, OverflowError):
            raise ValueError("it is truncated within its header") from None
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"its alignment is {alignment!r}, which is no number of bytes")
        start = -(-cursor.place // alignment) * alignment
        if start + end > len(blob):
            raise ValueError(f"it is truncated: {len(blob):,} of at least {start + end:,} bytes")
        return Header(metadata, shapes, len(blob))


class _Cursor:
    """Reads little-endian values one after the other."""

    def __init__(self, blob: mmap) -> None:
        self._blob = blob
        self.place = 4  # after the magic bytes

    def take(self, form: str) -> tuple[Any, ...]:
        """Numbers by their struct format."""
        values = struct.unpack_from(f"<{form}", self._blob, self.place)
        self.place += struct.calcsize(f"<{form}")
        return values

    def string(self) -> str:
        """A string with its length before it."""
        (size,) = self.take("Q")
        if self.place + size > len(self._blob):
            raise IndexError
        self.place += size
        return self._blob[self.place - size : self.place].decode("utf-8", "replace")

    def value(self) -> Any:
        """A metadata value after its type; None for an array."""
        (kind,) = self.take("I")
        if kind in _NUMBERS:
            return self.take(_NUMBERS[kind])[0]
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise ValueError(f"its metadata has a value of the unknown type {kind}")
        kind, count = self.take("IQ")
        if kind in _NUMBERS:
            self.place += count * struct.calcsize(f"<{_NUMBERS[kind]}")
        elif kind == _STRING:
            for _ in range(count):
                self.string()
        else:
            raise ValueError(f"its metadata has an array of the unknown type {kind}")
        return None


def require_packages(what: str) -> None:
    """Refuse ``what`` if the packages that `transformers` reads GGUF files with are not installed."""
    if missing := [package for package in ("gguf", "accelerate") if find_spec(package) is None]:
        raise ConfigError(f"{what}: a GGUF file needs {' and '.join(missing)}: pip install 'specdec[gguf]'")


def checked_header(role: str, name: str, path: Path) -> Header:
    """The header of the file that ``pair.ROLE=NAME`` names.

    Raises:
        ConfigError: there is no such file, or what reads it is not installed. PairError: the file cannot be used.
    """
    setting = f"pair.{role}={name}"
    if not path.is_file():
        raise ConfigError(f"{setting}: no such file")
    require_packages(setting)
    if _PART.search(path.stem):
        raise PairError(f"{setting}: one of several files of a model; join them first (llama-gguf-split --merge)")
    try:
        header = read_header(path)
    except (OSError, ValueError) as error:
        raise PairError(f"{setting}: the file cannot be read: {error}") from None
    if reason := _left_out(header):
        raise PairError(f"{setting}: {reason}; give the model as a folder in Hub format")
    return header


def _left_out(header: Header) -> str | None:
    """What the loader of `transformers` would leave out of the model without saying so."""
    architecture = header.metadata.get("general.architecture")
    scaling = header.metadata.get(f"{architecture}.rope.scaling.type", "none")
    if scaling != "none" and architecture != "gpt-oss":
        return f"its rotary positions are scaled ({scaling}), which transformers does not read from a GGUF file"
    for table in _ROTARY_TABLES:
        if table in header.shapes:
            return f"its rotary positions are scaled by a table ({table}) that transformers does not read"
    return None


def check_complete(role: str, name: str, header: Header, module: Any) -> None:
    """Refuse a model that has fewer or more weights than the file it was read from."""
    num_weights = sum(int(weight.numel()) for weight in module.parameters())
    if num_weights != header.num_weights:
        raise PairError(
            f"pair.{role}={name}: the file has {header.num_weights:,} weights and the model that transformers reads "
            f"from it {num_weights:,}; give the model as a folder in Hub format"
        )


def dequantised() -> dict[str, Any]:
    """Arguments that keep `transformers` from leaving weights in blocks, as newer versions do if they have kernels."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def as_plain_model(module: Any) -> None:
    """Forget that the weights were quantised, which they no longer are: `transformers` would refuse to save them."""
    if (quantizer := getattr(module, "hf_quantizer", None)) is not None:  # not in older versions
        quantizer.remove_quantization_config(module)


def set_special_tokens(tokenizer: Any, header: Header) -> None:
    """Give a tokenizer the special tokens that the file names; older versions of `transformers` guess some of them."""
    for token, key in _SPECIAL_TOKENS.items():
        number = header.metadata.get(f"tokenizer.ggml.{key}")
        if number is not None and getattr(tokenizer, f"{token}_id") != number:
            setattr(tokenizer, token, tokenizer.convert_ids_to_tokens(number))


@contextmanager
def announced(path: Path) -> Iterator[None]:
    """Say that the block reads a file; the bar of `transformers` is hidden where this is no terminal."""
    print(f"reading and dequantising {path.name}, which may take a minute", file=sys.stderr, flush=True)
    with nullcontext() if sys.stderr.isatty() else redirect_stderr(StringIO()):
        yield
