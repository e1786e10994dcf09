"""A log of a run's model forwards, and their replay: the same forwards in the same order, without the loop around them.

While a run decodes, an observer of its models records each forward: which model, which shapes, which writer. Afterwards
the same forwards run again, with the same shapes and the same compiled code, but without scheduler, verifier,
realignment or lists on the host. The time of the replay is a lower bound of the run's own (forward_bound).

The layout of the cache does not matter here: arguments are described by their shapes, and keys and values go to storage
of the run's own shapes.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specdec.core.clock import Clock
from specdec.models.causal_lm import CausalLM, ModelObserver
from specdec.models.execution.base import Call

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
    """Stands for keys and values among the arguments of a forward."""

    place: tuple[Hashable, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, slots=True)
class _Forward:
    shape: Shape
    model: CausalLM
    call: Call  # with a _Storage in place of keys and values


class ForwardLog:
    """The forwards of one run: each kind once, and the order in which they ran."""

    def __init__(self) -> None:
        self.order: list[int] = []
        self.overhead_s = 0.0  # logging overhead, charged to no stage
        self._forwards: list[_Forward] = []
        self._number: dict[Hashable, int] = {}
        self._storages: dict[_Storage, Tensor] = {}
        self._scratch: dict[Hashable, Tensor] = {}

    @property
    def shapes(self) -> list[Shape]:
        """The shapes of all forwards, in order."""
        return [self._forwards[number].shape for number in self.order]

    def add(self, model: CausalLM, call: Call, prefill: bool) -> None:
        """Record one forward, before it runs."""
        key = (id(model), prefill, _signature(call))
        if key not in self._number:
            self._number[key] = len(self._forwards)
            num_rows, num_tokens = call.tokens_BT.shape[:2]
            shape = Shape(id(model), num_rows, num_tokens, call.writer.num_columns, call.num_logits, prefill)
            self._forwards.append(_Forward(shape, model, self._described(call, (id(model),))))
        self.order.append(self._number[key])

    @torch.inference_mode()
    def replay(self, prefill: bool = False, synchronize: Callable[[], None] | None = None) -> float:
        """Run the logged forwards of prompts, or those of rounds, again; returns seconds.

        Arguments are made before the clock starts, and a few calls warm the caches.
        """
        wanted = [number for number in self.order if self._forwards[number].shape.prefill == prefill]
        forwards = {number: self._forwards[number] for number in dict.fromkeys(wanted)}
        calls = {number: (f.model.execution, self._restored(f.call, ())) for number, f in forwards.items()}
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

    def _described(self, value: Any, place: tuple[Hashable, ...]) -> Any:
        """A copy that does not keep the run's storage alive, except for the first few shapes of it."""
        if isinstance(value, Tensor):
            if not _is_storage(value):
                return value.clone()
            storage = _Storage(place, tuple(value.shape), value.dtype, value.device)
            if sum(known.place == place for known in self._storages) < KEPT_STORAGES:
                self._storages.setdefault(storage, value)
            return storage
        return _rebuilt(value, place, self._described)

    def _restored(self, value: Any, place: tuple[Hashable, ...]) -> Any:
        if not isinstance(value, _Storage):
            return value if isinstance(value, Tensor) else _rebuilt(value, place, self._restored)
        if value in self._storages:
            return self._storages[value]
        num_elements = torch.Size(value.shape).numel()
        flat = self._scratch.get(value.place)
        if flat is None or flat.numel() < num_elements:
            flat = self._scratch[value.place] = torch.zeros(num_elements, dtype=value.dtype, device=value.device)
        return flat[:num_elements].view(value.shape)


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


def _signature(value: Any) -> Hashable:
    """What decides how a forward runs: shapes of tensors, values of numbers."""
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.dtype)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, slice):
        return (value.start, value.stop, value.step)
    if isinstance(value, dict):
        return tuple((key, _signature(part)) for key, part in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_signature, value))
    return (type(value).__name__, *(_signature(part) for _, part in _parts(value)))


def _parts(value: Any) -> list[tuple[str, Any]]:
    if dataclasses.is_dataclass(value):
        return [(part.name, getattr(value, part.name)) for part in dataclasses.fields(value)]
    return list(vars(value).items()) if hasattr(value, "__dict__") else []


def _rebuilt(value: Any, place: tuple[Hashable, ...], change: Callable[[Any, tuple[Hashable, ...]], Any]) -> Any:
    """The same value with every tensor in it changed."""
    if isinstance(value, list | tuple):
        return type(value)([change(part, (*place, i)) for i, part in enumerate(value)])
    if isinstance(value, dict):
        return {key: change(part, (*place, key)) for key, part in value.items()}
    parts = [] if isinstance(value, slice) else _parts(value)
    if not parts:
        return value
    twin = copy.copy(value)
    for name, part in parts:
        object.__setattr__(twin, name, change(part, (*place, name)))
    return twin
