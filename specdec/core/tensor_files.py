"""Tensors in safetensors files that others may read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from specdec.core.files import let_others_read


def write_tensors(tensors: Mapping[str, Tensor], path: Path, *, of_a_model: bool = False) -> None:
    """Write a safetensors file.

    Args:
        of_a_model: with the mark that `transformers` wants in files of weights.
    """
    save_file(dict(tensors), path, metadata={"format": "pt"} if of_a_model else None)
    let_others_read(path)
