"""A log of a run's model forwards, and their replay: the same forwards in the same order, without the loop around them.

While a run decodes, an observer of its models records each forward: which model, which shapes, which writer. Afterwards
the same forwards run again, with the same shapes and the same compiled code, but without scheduler, verifier,
realignment or lists on the host. The time of the replay is a lower bound of the run's own (forward_bound).

The layout of the cache does not matter here: arguments are described by their shapes, and keys and values go to storage
of the run's own shapes.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch
from torch import Tensor

from specdec.core.clock import Clock
from specdec.models.causal_lm import CausalLM, ModelObserver
from specdec.models.execution.base import Call, Execution

KEPT_STORAGES = 4  # shapes of storage per model that are replayed on the run's own tensors; others share scratch memory
_WARM_CALLS = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of forward: B rows, T tokens fed per row, S columns read, and how many positions get logits."""

    model: int  # id of the CausalLM
    num_rows: int
    num_tokens: int
    num_columns: int
    num_logits: int
    prefill: bool


@dataclass(frozen=True, slots=True)
class _Storage:
    """The description of a tensor of keys and values, which is not kept."""

    model: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, slots=True)
class _Forward:
    shape: Shape
    model: CausalLM
    kind: bytes
    tensors: list[Tensor | _Storage]


class ForwardLog:
    """The forwards of one run: each kind once, and the order in which they ran."""

    def __init__(self) -> None:
        self.order: list[int] = []
        self.overhead_s = 0.0  # logging overhead, charged to no stage
        self._forwards: list[_Forward] = []
        self._number: dict[Hashable, int] = {}
        self._storages: dict[_Storage, Tensor] = {}
        self._scratch: dict[int, Tensor] = {}  # by model

    @property
    def shapes(self) -> list[Shape]:
        """The shapes of all forwards, in order."""
        return [self._forwards[number].shape for number in self.order]

    def add(self, model: CausalLM, call: Call, prefill: bool) -> None:
        """Record one forward, before it runs."""
        pickled = _CallPickler(call)
        key = (id(model), prefill, pickled.kind)
        if key not in self._number:
            self._number[key] = len(self._forwards)
            num_rows, num_tokens = call.tokens_BT.shape[:2]
            shape = Shape(id(model), num_rows, num_tokens, call.writer.num_columns, call.num_logits, prefill)
            tensors = [self._kept(tensor, id(model)) for tensor in pickled.tensors]
            self._forwards.append(_Forward(shape, model, pickled.kind, tensors))
        self.order.append(self._number[key])

    @torch.inference_mode()
    def replay(self, prefill: bool = False, synchronize: Callable[[], None] | None = None) -> float:
        """Run the logged forwards of the rounds (or of prefill) again; returns seconds.

        Arguments are created before the clock starts, and a few calls warm the caches.
        """
        wanted = [number for number in self.order if self._forwards[number].shape.prefill == prefill]
        calls: dict[int, tuple[Execution, Call]] = {}
        for number in dict.fromkeys(wanted):
            forward = self._forwards[number]
            call = _CallUnpickler(forward.kind, [self._restored(tensor) for tensor in forward.tensors]).load()
            call.positions(), call.mask()  # a layout makes its tensors when they are first asked for
            calls[number] = forward.model.execution, call
        for execution, call in list(calls.values())[:_WARM_CALLS]:
            execution.run(call)
        if synchronize is not None:
            synchronize()
        started = time.perf_counter()
        for number in wanted:
            execution, call = calls[number]
            execution.run(call)
        if synchronize is not None:
            synchronize()
        return time.perf_counter() - started

    def forwards(self) -> Iterator[tuple[CausalLM, Shape]]:
        """Model and shape of every forward, in order."""
        for number in self.order:
            yield self._forwards[number].model, self._forwards[number].shape

    def _kept(self, tensor: Tensor, model: int) -> Tensor | _Storage:
        """A copy that does not keep the run's storage alive, except for the first few shapes of it."""
        if not _is_storage(tensor):
            return tensor.clone()
        storage = _Storage(model, tensor.shape, tensor.dtype, tensor.device)
        if sum(known.model == model for known in self._storages) < KEPT_STORAGES:
            self._storages.setdefault(storage, tensor)
        return storage

    def _restored(self, tensor: Tensor | _Storage) -> Tensor:
        if isinstance(tensor, Tensor):
            return tensor
        if tensor in self._storages:
            return self._storages[tensor]
        size = tensor.shape.numel()
        flat = self._scratch.get(tensor.model)
        if flat is None or flat.numel() < size:
            flat = self._scratch[tensor.model] = torch.zeros(size, dtype=tensor.dtype, device=tensor.device)
        return flat[:size].view(tensor.shape)


@contextmanager
def recording(log: ForwardLog | None, clock: Clock, observers: list[ModelObserver]) -> Iterator[None]:
    """Record the forwards of the block, of the models that have these observers; without a log, do nothing.

    The time that recording takes is charged to no stage.
    """
    if log is None:
        yield
        return

    def record(model: CausalLM, call: Call) -> Call:
        started = time.perf_counter()
        log.add(model, call, clock.within("prefill"))
        spent = time.perf_counter() - started
        log.overhead_s += spent
        clock.discount(spent)
        return call

    observers.append(record)
    try:
        yield
    finally:
        observers.remove(record)


def _is_storage(tensor: Tensor) -> bool:
    """Keys and values, rather than tokens, positions or a mask."""
    return tensor.dim() >= 4 and tensor.is_floating_point()


class _CallPickler(pickle.Pickler):
    """Pickles a call with the shapes of its tensors in place of their values, so that calls of one kind are equal."""

    def __init__(self, call: Call) -> None:
        self._buffer = BytesIO()
        super().__init__(self._buffer)
        self.tensors: list[Tensor] = []
        self.dump(call)

    @property
    def kind(self) -> bytes:
        return self._buffer.getvalue()

    def persistent_id(self, value: Any) -> tuple[Hashable, ...] | None:
        if not isinstance(value, Tensor):
            return None
        self.tensors.append(value)
        return len(self.tensors) - 1, tuple(value.shape), value.dtype


class _CallUnpickler(pickle.Unpickler):
    """Makes a call of its kind and its tensors."""

    def __init__(self, kind: bytes, tensors: list[Tensor]) -> None:
        super().__init__(BytesIO(kind))
        self._tensors = tensors

    def persistent_load(self, key: tuple[int, ...]) -> Tensor:
        return self._tensors[key[0]]
