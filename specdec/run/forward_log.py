"""Replay: a run's own model forwards, again, in their order, without the loop around them.

While a run decodes, every `CausalLM.forward` is written down: which model, which shapes, which writer. Afterwards the
same forwards run again in the same order, with the same shapes and the same compiled code, but without scheduler,
verifier, realignment or lists on the host. What that takes is the least that the run could have taken (forward_bound).

Whoever lays out the cache does not matter here: arguments are described by their shapes, and keys and values go to
storage of the run's own shapes.
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
from specdec.models.causal_lm import CausalLM
from specdec.models.execution.base import Gives

KEPT_STORAGES = 4  # shapes of storage per model that are replayed on the run's own tensors; others share scratch
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
class _Call:
    shape: Shape
    model: CausalLM
    gives: Gives
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class ForwardLog:
    """The forwards of one run: each kind once, and the order in which they came."""

    def __init__(self) -> None:
        self.order: list[int] = []
        self.overhead_s = 0.0  # time spent writing down, which is nobody's
        self._calls: list[_Call] = []
        self._number: dict[Hashable, int] = {}
        self._storages: dict[_Storage, Tensor] = {}
        self._scratch: dict[Hashable, Tensor] = {}

    @property
    def shapes(self) -> list[Shape]:
        """The shapes of all forwards, in order."""
        return [self._calls[number].shape for number in self.order]

    def add(self, model: CausalLM, prefill: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Write one forward down, before it runs."""
        key = (id(model), model.gives, prefill, _signature(args), _signature(kwargs))
        if key not in self._number:
            self._number[key] = len(self._calls)
            self._calls.append(
                _Call(
                    _shape(model, prefill, args, kwargs),
                    model,
                    model.gives,
                    tuple(self._described(arg, (id(model), i)) for i, arg in enumerate(args)),
                    {name: self._described(value, (id(model), name)) for name, value in kwargs.items()},
                )
            )
        self.order.append(self._number[key])

    def replay(self, prefill: bool = False, synchronize: Callable[[], None] | None = None) -> float:
        """Run the logged forwards again, those of prompts or those of rounds; returns seconds.

        Arguments are made before the clock starts, and a few calls warm the caches.
        """
        wanted = [number for number in self.order if self._calls[number].shape.prefill == prefill]
        made = {number: self._made(self._calls[number]) for number in dict.fromkeys(wanted)}
        before = {self._calls[number].model: self._calls[number].model.gives for number in made}
        for number in list(made)[:_WARM_CALLS]:
            made[number]()
        if synchronize is not None:
            synchronize()
        started = time.perf_counter()
        for number in wanted:
            made[number]()
        if synchronize is not None:
            synchronize()
        seconds = time.perf_counter() - started
        for model, gives in before.items():
            model.gives = gives
        return seconds

    def forwards(self) -> Iterator[tuple[CausalLM, Shape]]:
        """Model and shape of every forward, in order."""
        for number in self.order:
            yield self._calls[number].model, self._calls[number].shape

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

    def _made(self, call: _Call) -> Callable[[], object]:
        args = [self._restored(arg, ()) for arg in call.args]
        kwargs = {name: self._restored(value, ()) for name, value in call.kwargs.items()}

        def again() -> Tensor:
            call.model.gives = call.gives
            return CausalLM.forward(call.model, *args, **kwargs)

        return again

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


_paused = 0


@contextmanager
def unrecorded() -> Iterator[None]:
    """Leave out the forwards of the block: they belong to something else than the run, such as a missing reference."""
    global _paused
    _paused += 1
    try:
        yield
    finally:
        _paused -= 1


@contextmanager
def recording(log: ForwardLog | None, clock: Clock) -> Iterator[None]:
    """Write down every forward of the block; the time it takes is charged to no stage. None: nothing happens."""
    if log is None:
        yield
        return
    original = CausalLM.forward

    def forward(model: CausalLM, *args: Any, **kwargs: Any) -> Tensor:
        if _paused:
            return original(model, *args, **kwargs)
        started = time.perf_counter()
        log.add(model, clock.within("prefill"), args, kwargs)
        spent = time.perf_counter() - started
        log.overhead_s += spent
        clock.discount(spent)
        return original(model, *args, **kwargs)

    CausalLM.forward = forward  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        CausalLM.forward = original  # type: ignore[method-assign]


def _is_storage(tensor: Tensor) -> bool:
    """Keys and values, rather than tokens, positions or a mask."""
    return tensor.dim() >= 4 and tensor.is_floating_point()


def _shape(model: CausalLM, prefill: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Shape:
    named = dict(zip(("tokens_BT", "positions_BT", "mask_BTS", "writer", "num_logits"), args, strict=False)) | kwargs
    num_rows, num_tokens = named["tokens_BT"].shape[:2]
    return Shape(
        id(model), num_rows, num_tokens, named["writer"].num_columns, int(named.get("num_logits") or 0), prefill
    )


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
