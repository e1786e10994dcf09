"""The Execution contract: one forward of one model, over keys and values that a writer lays out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from specdec.core.transfer import to_device
from specdec.models.kv import KVWriter

OutputKind = Literal["logits", "hidden", "both"]
"""What a forward returns for each token: logits (V), the last hidden state (D), or both concatenated (V + D)."""


class Layout(Protocol):
    """Positions of the new tokens, and which columns they see."""

    def positions(self) -> Tensor:
        """(B, T) positions."""

    def mask(self) -> Tensor:
        """(B, T, S) bool: which of the writer's columns each query sees."""


@dataclass(frozen=True, slots=True)
class Given(Layout):
    """Tensors from an alignment."""

    positions_BT: Tensor
    mask_BTS: Tensor

    def positions(self) -> Tensor:
        return self.positions_BT

    def mask(self) -> Tensor:
        return self.mask_BTS


class Chains(Layout):
    """Tokens whose positions are the columns that they are written to; each sees all columns up to its own.

    The tensors are made when an execution asks for them: one that knows this layout needs none.
    """

    def __init__(self, writer: KVWriter, num_new: int, last_position: int, device: torch.device) -> None:
        self._writer, self._num_new, self._last, self._device = writer, num_new, last_position, device
        self._columns_BT: Tensor | None = None
        self._mask_BTS: Tensor | None = None

    def _columns(self) -> Tensor:
        if self._columns_BT is None:
            columns_BT = self._writer.place.starts_B[:, None] + torch.arange(self._num_new)
            self._columns_BT = to_device(columns_BT, self._device)
        return self._columns_BT

    def positions(self) -> Tensor:
        # Only padding can be past the last position, where a model with learned positions has no embedding.
        return self._columns().clamp(max=self._last)

    def mask(self) -> Tensor:
        if self._mask_BTS is None:
            columns_S = torch.arange(self._writer.num_columns, device=self._device)
            self._mask_BTS = columns_S <= self._columns()[..., None]
        return self._mask_BTS


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one forward. B rows, T new tokens, S columns that are read, D hidden size."""

    tokens_BT: Tensor  # ids, or (B, T, D) embeddings
    layout: Layout
    writer: KVWriter
    num_logits: int  # of the last positions; 0 means all
    output_kind: OutputKind
    real_BT: Tensor | None = None  # bool; the other tokens are padding. None: all are real

    def positions(self) -> Tensor:
        """(B, T) positions."""
        return self.layout.positions()

    def mask(self) -> Tensor:
        """(B, T, S) bool: which of the writer's columns each query sees."""
        return self.layout.mask()


class Execution(ABC):
    """Computes the forwards of one model, after any preparation such as packing or compiling."""

    name: str
    prepare_s: float = 0.0  # preparation time, part of no measurement
    ragged = False  # whether it reads rows in any slots without a copy, and computes no padding
    note: str | None = None  # why execution=auto chose this one although a faster one might know the architecture

    @abstractmethod
    def run(self, call: Call) -> Tensor:
        """Logits (B, T or num_logits, V), or what ``call.output_kind`` says."""

    def is_valid(self) -> bool:
        """Whether the preparation still matches the model, whose weights and modules may have changed since."""
        return True
