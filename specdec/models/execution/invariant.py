"""What the invariant executions share: stock kernels, the same bits for a row in any batch (numerics=invariant).

Both run a call as lists of tokens (packed.py) whose sizes belong to the model's classes (specdec.models.numerics): one
by the operations of the fused execution, the other by the model's own code in `transformers`. ``operations`` are what
the classes are measured with.

Shape letters: B rows, T tokens per row, M tokens of the list, X any.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specdec.core.transfer import to_device
from specdec.models.execution.base import Call, Execution
from specdec.models.execution.packed import Ints, Packed, pack
from specdec.models.numerics.classes import Classes


@dataclass(frozen=True, slots=True)
class Operation:
    """A part of a forward that works on each token alone: (M, *shape) to (M, ...)."""

    name: str
    run: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    num_weights: int
    with_weight: Callable[[Tensor], Callable[[Tensor], Tensor]] | None = None  # products: with another weight (O, I)
    in_float32: Callable[[], Callable[[Tensor], Tensor]] | None = None  # what it computes in float32, before rounding


@dataclass(frozen=True, slots=True)
class Heads:
    """The sizes of an attention: query and key heads, the widths of keys and values, the scale of scores."""

    queries: int
    keys: int
    key_size: int
    value_size: int
    scale: float | None


class Invariant(Execution):
    """A call as lists of tokens; ``classes`` are to be measured before it is run."""

    classes: Classes
    shares = False  # a list reads the columns of one storage
    picks_columns = True

    @abstractmethod
    def operations(self) -> list[Operation]:
        """Each kind of operation on single tokens, once."""

    @abstractmethod
    def heads(self) -> list[Heads]:
        """Each kind of attention, once."""

    @abstractmethod
    def run_list(self, packed: Packed, call: Call, wanted_M: Tensor) -> Tensor:
        """Store the keys and values of a list; return what ``call.outputs`` says at the wanted places in it."""

    def run(self, call: Call) -> Tensor:
        T = call.tokens_BT.shape[1]
        count = call.num_logits or T
        parts = []
        for packed in pack(call, self.classes):
            wanted = (packed.steps_M >= T - count).nonzero()[0]
            padding = np.zeros(self.classes.num_rows(max(len(wanted), 1)) - len(wanted), np.int64)
            wanted_M = to_device(np.concatenate([wanted, padding]), call.tokens_BT.device)
            parts.append(Part(packed, wanted, self.run_list(packed, call, wanted_M)[: len(wanted)]))
        call.writer.written()
        return rectangle(parts, call, count, self.num_outputs(call))

    @abstractmethod
    def sizes(self) -> tuple[int, int]:
        """Numbers of logits, and of hidden states, per token."""

    def num_outputs(self, call: Call) -> int:
        """Numbers per token that a call asks for."""
        num_logits, num_hidden = self.sizes()
        return num_logits * call.outputs.logits + num_hidden * len(call.outputs.hidden)


@dataclass(frozen=True, slots=True)
class Part:
    """What a list gives for some of its tokens."""

    packed: Packed
    wanted: Ints
    output_MX: Tensor


def rectangle(parts: list[Part], call: Call, count: int, width: int) -> Tensor:
    """(B, count, X) of the last ``count`` steps; zero for padding."""
    (B, T), device = call.tokens_BT.shape[:2], call.tokens_BT.device
    if sum(len(part.wanted) for part in parts) == B * count:
        whole = parts[0].output_MX if len(parts) == 1 else torch.cat([part.output_MX for part in parts])
        return whole.view(B, count, -1)
    places = [p.packed.rows_M[p.wanted] * count + p.packed.steps_M[p.wanted] - (T - count) for p in parts]
    dtype = parts[0].output_MX.dtype if parts else None
    output = torch.zeros(B * count, parts[0].output_MX.shape[-1] if parts else width, dtype=dtype, device=device)
    for place, part in zip(places, parts, strict=True):
        output.index_copy_(0, to_device(place, device), part.output_MX)
    return output.view(B, count, -1)
