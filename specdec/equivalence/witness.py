"""Logits that decided the first difference of a row, kept on disk until they are explained.

The explanation of a divergence needs what the run itself computed there. It is made when all rows are decoded, which
may be in another process than the one that decoded the row.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


class WitnessFiles:
    """One small file per row that differs from its reference, in ``results/<hash>/divergences``."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self._folder = folder / "divergences"
        self._dtype = dtype  # the model's: nothing is lost

    def save(self, index: int, logits_V: Tensor) -> None:
        """Keep a row's logits (V); must come before the row counts as finished."""
        self._folder.mkdir(exist_ok=True)
        temporary = self._folder / f".{index}"
        save_file({"logits_V": logits_V.to(self._dtype)}, temporary)
        os.replace(temporary, self._path(index))

    def load(self, index: int) -> Tensor | None:
        """Logits (V) in float64, or None where the run emitted no differing token."""
        path = self._path(index)
        return load_file(path)["logits_V"].double() if path.exists() else None

    def _path(self, index: int) -> Path:
        return self._folder / f"{index}.safetensors"
