"""The Execution contract: one forward of one model, over keys and values that a writer lays out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from specdec.core.outputs import Outputs
from specdec.core.transfer import to_device
from specdec.models.kv import KVWriter
from specdec.models.states import StateFeed


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
    num_positions: int = 0  # all positions are below it, where some are not below the number of columns

    def positions(self) -> Tensor:
        return self.positions_BT

    def mask(self) -> Tensor:
        return self.mask_BTS


class Chains(Layout):
    """Tokens whose positions are the columns that they are written to; each sees all columns up to its own.

    Columns that a row shares come before its own, and are counted with them. The tensors are made when an execution
    asks for them: one that knows this layout needs none.
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
        shared = self._writer.shared
        columns_BT = self._columns()
        if shared is not None:
            columns_BT = columns_BT + to_device(shared.lengths_B, self._device)[:, None]
        # Only padding can be past the last position, where a model with learned positions has no embedding.
        return columns_BT.clamp(max=self._last)

    def mask(self) -> Tensor:
        if self._mask_BTS is None:
            shared = self._writer.shared
            num_own = self._writer.num_columns - (shared.width if shared else 0)
            columns_S = torch.arange(num_own, device=self._device)
            own_BTS = columns_S <= self._columns()[..., None]
            self._mask_BTS = own_BTS if shared is None else shared.mask(own_BTS)
        return self._mask_BTS


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one forward. B rows, T new tokens, S columns that are read, D hidden size."""

    tokens_BT: Tensor  # ids, or (B, T, D) embeddings
    layout: Layout
    writer: KVWriter
    num_logits: int  # of the last positions; 0 means all
    outputs: Outputs
    real_BT: Tensor | None = None  # bool; the other tokens are padding. None: all are real
    states: StateFeed | None = None  # where a model with recurrent states finds and leaves them

    def positions(self) -> Tensor:
        """(B, T) positions."""
        return self.layout.positions()

    @property
    def num_positions(self) -> int:
        """All positions are below it; known without waiting for a device."""
        return max(self.writer.num_columns, getattr(self.layout, "num_positions", 0))

    def mask(self) -> Tensor:
        """(B, T, S) bool: which of the writer's columns each query sees."""
        return self.layout.mask()


class Execution(ABC):
    """Computes the forwards of one model, after any preparation such as packing or compiling."""

    name: str
    prepare_s: float = 0.0  # preparation time, part of no measurement
    shares = False  # whether rows may read columns that are held once for several of them (KVWriter.shared)
    picks_columns = False  # whether it reads only columns that a mask shows, and no others
    ragged = False  # whether it reads rows in any slots without a copy, and computes no padding
    bits: Any = None  # numerics=invariant: what decides a row's bits, as plain data
    note: str | None = None  # why execution=auto chose this one although a faster one might know the architecture

    @abstractmethod
    def run(self, call: Call) -> Tensor:
        """Logits (B, T or num_logits, V), or what ``call.outputs`` says."""

    def is_valid(self) -> bool:
        """Whether the preparation still matches the model, whose weights and modules may have changed since."""
        return True
