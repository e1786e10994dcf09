"""A folder of a head or a model as it is on disk: its config, and the names and shapes of its tensors.

Only headers are read, so that a folder of any size is described at once. Imports no torch.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec.assets import local_path
from specdec.errors import ConfigError, first_line

CONFIG, SAFETENSORS = "config.json", "*.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth")
_NOT_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt")
_LFS_POINTER = b"version "  # how its text begins
_MAX_HEADER_BYTES = 100_000_000  # the limit of the format


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of a file, not read yet."""

    shape: tuple[int, ...]
    dtype: str  # as safetensors name it: F32, BF16, I64
    file: Path
    name: str  # in that file


@dataclass(frozen=True, slots=True)
class Folder:
    """What a folder holds."""

    name: str  # as the user gave it
    path: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    pickles: tuple[Path, ...] = ()  # files of weights whose names are not known without unpickling them


def open_folder(name: str, setting: str = "drafter.path", *, allow_pickle: bool = False) -> Folder:
    """The folder of a path, or of a name on the Hub, which is downloaded or taken from the local cache.

    Args:
        setting: names the input in error messages.
        allow_pickle: whether pickles are downloaded too.

    Raises:
        ConfigError: there is none, or it has no config.json, or a file is damaged.
    """
    path = _path_of(name, setting, allow_pickle)
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{setting}={name}: it has no {CONFIG}; give the folder of a head") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{setting}={name}: {CONFIG} cannot be read: {first_line(error)}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{setting}={name}: {CONFIG} is no JSON object")
    tensors: dict[str, TensorInfo] = {}
    for file in sorted(path.glob(SAFETENSORS)):
        try:
            tensors |= _header(file)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{setting}={name}: {file.name} cannot be loaded: {first_line(error)}") from None
    pickles = [file for kind in PICKLES for file in sorted(path.glob(kind)) if file.name not in _NOT_WEIGHTS]
    return Folder(name, path, config, tensors, () if tensors else tuple(pickles))


def _path_of(name: str, setting: str, allow_pickle: bool) -> Path:
    path = local_path(name)
    if path.is_dir():
        return path
    if path.exists() or name.startswith(("/", ".", "~", "asset:", "fetched:")) or name.count("/") != 1:
        raise ConfigError(f"{setting}={name}: no such folder, and not a Hub name (ORGANISATION/MODEL)")
    from huggingface_hub import snapshot_download

    patterns = ["*.json", SAFETENSORS, *(PICKLES if allow_pickle else ())]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the Hub client raises many kinds
        raise ConfigError(
            f"{setting}={name}: cannot be had from the Hub ({first_line(error)[:120]}); download it and give its folder"
        ) from None


def _header(file: Path) -> dict[str, TensorInfo]:
    """Names and shapes of a safetensors file: 8 bytes of length, then JSON."""
    with file.open("rb") as stream:
        start = stream.read(8)
        if start == _LFS_POINTER:
            raise ValueError("it is a pointer of Git LFS: fetch the file itself (git lfs pull)")
        if len(start) < 8 or (size := struct.unpack("<Q", start)[0]) > _MAX_HEADER_BYTES:
            raise ValueError("its header is damaged")
        text = stream.read(size)
    found, end = {}, 0
    try:
        for name, entry in json.loads(text).items():
            if name != "__metadata__":
                found[name] = TensorInfo(tuple(map(int, entry["shape"])), str(entry["dtype"]), file, name)
                end = max(end, int(entry["data_offsets"][1]))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ValueError("its header is damaged") from None
    if file.stat().st_size != 8 + size + end:
        raise ValueError(f"it should have {8 + size + end} bytes and has {file.stat().st_size}")
    return found
