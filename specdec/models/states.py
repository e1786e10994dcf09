"""Recurrent states of rows: convolutions, scans and linear attention keep a tensor per row instead of keys and values.

A state cannot be cut back to an earlier token. So a forward leaves a checkpoint after every token that it is fed, and a
row goes on from the checkpoint of the last token that it keeps. Shape letters: B rows, T tokens, S slots, P places.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, LinearAttentionCacheLayerMixin

from specdec.errors import PairError
from specdec.models.cache_argument import cache_argument

CONV, RECURRENT = "conv_states", "recurrent_states"
"""The two kinds of states in a cache layer of `transformers`."""


@dataclass(frozen=True, slots=True)
class StatePart:
    """One tensor of a row's state."""

    layer: int
    kind: str  # CONV or RECURRENT
    number: int  # among the layer's states of this kind
    shape: tuple[int, ...]  # without the row
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes of one row's part."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Mixer:
    """A module that reads and writes states: its name, and its parts by their numbers."""

    name: str
    parts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class States:
    """The recurrent states of an architecture; empty where it has none."""

    parts: tuple[StatePart, ...] = ()
    mixers: tuple[Mixer, ...] = ()
    continues: bool = False  # whether the chunked form of the mixers starts from a given state (that of Mamba 1: zero)

    @property
    def num_bytes(self) -> int:
        """Bytes of one row's state."""
        return sum(part.num_bytes for part in self.parts)


NO_STATES = States()


class StateStorage:
    """States of rows: per slot a number of places, each of which holds the state after some token of the row."""

    def __init__(self, states: States, device: torch.device) -> None:
        self.parts = [
            torch.zeros(0, 1, *part.shape, dtype=part.dtype, device=device) for part in states.parts
        ]  # (S, P, ...) each

    @property
    def num_slots(self) -> int:
        """Rows that it has room for."""
        return self.parts[0].shape[0]

    @property
    def num_places(self) -> int:
        """Checkpoints of a row that it has room for."""
        return self.parts[0].shape[1]

    def reserve(self, slots: int, places: int) -> None:
        """Make room; what is stored stays."""
        have = self.num_slots, self.num_places
        if slots <= have[0] and places <= have[1]:
            return
        want = max(slots, 2 * have[0]) if slots > have[0] else have[0], max(places, have[1])
        for i, part in enumerate(self.parts):
            self.parts[i] = part.new_zeros(*want, *part.shape[2:])
            self.parts[i][: have[0], : have[1]] = part

    def clear(self, slot: int, place: int) -> None:
        """Set a state to that before the first token."""
        for part in self.parts:
            part[slot, place] = 0


@dataclass(frozen=True, slots=True)
class StateFeed:
    """The states that one forward starts from and leaves: token by token, or once for all tokens.

    In step n the forward's next ``width`` tokens of each row continue the state at ``sources_NB[n]`` of its slot, and
    leave theirs at ``targets_NB[n]``.
    """

    storage: StateStorage
    slots_B: Tensor
    sources_NB: Tensor
    targets_NB: Tensor
    width: int


def state_cache(module: Any) -> DynamicCache | None:
    """The cache that `transformers` gives a model with recurrent states; None if the model has none."""
    config = module.config.get_text_config()
    return DynamicCache(config=config) if recurrent_layers(config) else None


def recurrent_layers(config: Any) -> list[int]:
    """The layers for which the caches of `transformers` keep a recurrent state, by a model's config."""
    try:
        layers = DynamicCache(config=config).layers
    except Exception:  # code that comes with a checkpoint may describe its layers in its own way
        return []
    return [number for number, layer in enumerate(layers) if isinstance(layer, LinearAttentionCacheLayerMixin)]


@torch.inference_mode()
def measure_states(module: Any, cache: DynamicCache) -> States:
    """Which states the model keeps, and in which modules: seen in a forward of one token with its own cache.

    Raises:
        PairError: its states cannot be restored; the message is the reason.
    """
    ids = torch.zeros(1, 1, dtype=torch.long, device=module.device)
    with _watched(module, cache) as users:
        module(ids, **cache_argument(module, cache), use_cache=True)
    parts = [
        StatePart(number, kind, i, tuple(state.shape[1:]), state.dtype)
        for number, layer in enumerate(cache.layers)
        for kind in (CONV, RECURRENT)
        for i, state in getattr(layer, kind, {}).items()
        if state is not None
    ]
    found = {(part.layer, part.number) for part in parts}
    owners: dict[tuple[int, int], str] = {}
    for name, used in users.items():
        if None in used:
            raise PairError(f"its {name} keeps keys and values and a recurrent state in one module")
        owners.update((place, name) for place in used if place is not None)
    if found != set(owners) or {number for number, _ in found} != set(
        recurrent_layers(module.config.get_text_config())
    ):
        raise PairError("its layers keep their recurrent state outside of the cache")
    names = dict.fromkeys(owners[part.layer, part.number] for part in parts)
    numbers = {name: [i for i, part in enumerate(parts) if owners[part.layer, part.number] == name] for name in names}
    mixers = tuple(Mixer(name, tuple(numbers[name])) for name in names)
    return States(tuple(parts), mixers, _continues(module, parts))


def _continues(module: Any, parts: list[StatePart]) -> bool:
    """Whether a forward of several tokens depends on the recurrent state before them."""
    ids = torch.zeros(1, 2, dtype=torch.long, device=module.device)
    logits = []
    for added in (0, 1):
        cache = DynamicCache(config=module.config.get_text_config())
        module(ids[:, :1], **cache_argument(module, cache), use_cache=True)
        for part in parts:
            if part.kind == RECURRENT:
                getattr(cache.layers[part.layer], part.kind)[part.number] += added
        logits.append(module(ids, **cache_argument(module, cache), use_cache=True).logits)
    return all(part.kind == CONV for part in parts) or not torch.equal(*logits)


@contextmanager
def _watched(module: nn.Module, cache: Cache) -> Iterator[dict[str, set[tuple[int, int] | None]]]:
    """The names of the modules that use a state, with the layer and number of each; None: its keys and values too."""
    names = {part: name for name, part in module.named_modules()}
    running: list[nn.Module] = []
    states: dict[str, set[tuple[int, int] | None]] = {}
    writers: set[str] = set()
    update, update_conv = cache.update, cache.update_conv_state

    def note_update(*args: Any, **kwargs: Any) -> Any:
        writers.add(names[running[-1]])
        return update(*args, **kwargs)

    def note_state(new: Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any) -> Any:
        states.setdefault(names[running[-1]], set()).add((layer_idx, state_idx))
        return update_conv(new, layer_idx, state_idx, **kwargs)

    cache.update, cache.update_conv_state = note_update, note_state  # type: ignore[method-assign, assignment]
    hooks = []
    for part in names:
        hooks.append(part.register_forward_pre_hook(lambda part, args: running.append(part)))
        hooks.append(part.register_forward_hook(lambda part, args, output: _leave(running)))
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()
        for name in writers & states.keys():
            states[name].add(None)


def _leave(running: list[nn.Module]) -> None:
    running.pop()
