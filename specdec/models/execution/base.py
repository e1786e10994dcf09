"""The Execution contract: one forward of one model, over keys and values that a writer lays out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from specdec.models.kv import KVWriter

OutputKind = Literal["logits", "hidden", "both"]
"""What a forward returns for each token: logits (V), the last hidden state (D), or both concatenated (V + D)."""


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one forward. B rows, T new tokens, S columns that are read, D hidden size."""

    tokens_BT: Tensor  # ids, or (B, T, D) embeddings
    positions_BT: Tensor
    mask_BTS: Tensor  # bool: which of the writer's columns each query sees
    writer: KVWriter
    num_logits: int  # of the last positions; 0 means all
    output_kind: OutputKind


class Execution(ABC):
    """Computes the forwards of one model, after any preparation such as packing or compiling."""

    name: str
    prepare_s: float = 0.0  # preparation time, part of no measurement
    note: str | None = None  # why execution=auto chose this one although a faster one knows the architecture

    @abstractmethod
    def run(self, call: Call) -> Tensor:
        """Logits (B, T or num_logits, V), or what ``call.output_kind`` says."""

    def is_valid(self) -> bool:
        """Whether the preparation still matches the model, whose weights and modules may have changed since."""
        return True
