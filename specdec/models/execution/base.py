"""The Execution contract: one forward of one model, over keys and values that a writer lays out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

if TYPE_CHECKING:
    from specdec.models.kv import KVWriter

Gives = Literal["logits", "hidden", "both"]
"""What a forward returns for each token: logits (V), the last hidden state (D), or one behind the other (V + D)."""


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one forward. B rows, T new tokens, S columns that are read, D hidden size."""

    tokens_BT: Tensor  # ids, or (B, T, D) embeddings
    positions_BT: Tensor
    mask_BTS: Tensor  # bool: which of the writer's columns each query sees
    writer: KVWriter
    num_logits: int  # of the last positions; 0 means all
    gives: Gives


class Execution(ABC):
    """Computes forwards of the model that it was made for. It may prepare something; what that took is told."""

    name: str
    prepare_s: float = 0.0  # seconds spent on packing or compiling, outside of every measurement
    column_bucket: int = 1  # widths of the read columns are rounded up to a multiple of this: fewer shapes
    note: str | None = None  # why execution=auto chose this one, where a faster one knows the architecture

    @abstractmethod
    def run(self, call: Call) -> Tensor:
        """Logits (B, T or num_logits, V), or what ``call.gives`` says."""

    def holds(self) -> bool:
        """Whether what was prepared still stands for the model, whose weights and modules may have changed since."""
        return True
