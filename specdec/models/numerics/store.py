"""Measured classes in the user's cache, by machine, libraries, threads, code, dtype and the model's operations."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from specdec.assets import cache_folder
from specdec.core.files import digest, write_json
from specdec.models.execution.invariant import Invariant
from specdec.models.numerics.classes import Classes
from specdec.models.numerics.measure import measure

_CODE = ("numerics", "execution")
"""Folders beside this one whose sources decide what is measured and run."""
_LIBRARY_SETTINGS = ("MKL_", "ONEDNN_", "DNNL_", "ATEN_", "OPENBLAS_", "CUBLAS_", "NVIDIA_TF32")


def classes_of(execution: Invariant, device: torch.device, dtype: torch.dtype, longest: int) -> tuple[Classes, Path]:
    """The classes of an execution, measured unless they are known, and the file that keeps them.

    Raises:
        ConfigError: an operation has no class.
    """
    conditions = _conditions(execution, device, dtype, longest)
    path = cache_folder() / "numerics" / f"{digest(conditions)}.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["conditions"] == conditions:
            return Classes(**{name: tuple(sizes) for name, sizes in kept["classes"].items()}), path
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none, or not readable: measured again
    classes = measure(execution, device, dtype, longest)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"conditions": conditions, "classes": classes.described()})
    except OSError:
        pass  # a cache that cannot be written costs a second per start
    return classes, path


def _conditions(execution: Invariant, device: torch.device, dtype: torch.dtype, longest: int) -> dict[str, Any]:
    operations = [[each.name, list(each.shape), each.num_weights] for each in execution.operations()]
    return {
        "machine": _machine(device),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "settings": {key: os.environ[key] for key in sorted(os.environ) if key.startswith(_LIBRARY_SETTINGS)},
        "threads": torch.get_num_threads(),
        "code": _code(),
        "execution": execution.name,
        "dtype": str(dtype),
        "longest": longest,
        "operations": operations,
        "attention": [asdict(heads) for heads in execution.heads()],
    }


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} {torch.version.cuda}"
    return f"{_processor()} {torch.backends.cpu.get_cpu_capability()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = ("vendor_id", "cpu family", "model", "model name", "stepping")
    found = dict(line.split(":", 1) for line in lines if line.partition("\t")[0] in names)
    return " ".join(value.strip() for value in found.values()) or platform.machine()


@cache
def _code() -> str:
    folder = Path(__file__).parent.parent
    sources = [file for name in _CODE for file in sorted((folder / name).glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()[:16]
