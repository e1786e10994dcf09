"""What a model receives: tokens, positions, masks, and the keys that the queries of its first layer read.

A key of the first layer depends only on its token and position, as no attention comes before it. Comparing the keys
that a query sees with those of the tokens it should see therefore shows exactly what it sees, in whatever layout a
strategy uses. Shape letters: M rows of the forward, T tokens, S columns, E = heads x size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from specdec.core.outputs import LOGITS
from specdec.models.cache_argument import cache_argument, returned_cache
from specdec.models.causal_lm import CausalLM
from specdec.models.execution.base import Call, Given
from specdec.models.execution.eager import EagerExecution
from specdec.models.kv import KVWriter, Place
from specdec.models.shared import SharedColumns
from specdec.models.states import state_cache


@dataclass(frozen=True, slots=True)
class Observed:
    """The inputs of one forward, and the keys that its first layer read."""

    tokens_MT: Tensor
    positions_MT: Tensor
    mask_MTS: Tensor
    keys_MSE: Tensor


@dataclass(frozen=True, slots=True)
class _Watched:
    """A writer that passes on the keys which the queries of the first layer read."""

    writer: KVWriter
    observe: Callable[[Tensor], None]

    @property
    def place(self) -> Place:
        return self.writer.place

    @property
    def shared(self) -> SharedColumns | None:
        return self.writer.shared

    @property
    def num_columns(self) -> int:
        return self.writer.num_columns

    def write(self, index: int, states_BHTD: Tensor) -> Tensor:
        own_BHSD = self.writer.write(index, states_BHTD)
        if index == 0:
            self.observe(own_BHSD if self.shared is None else self.shared.joined(0, own_BHSD))
        return own_BHSD

    def written(self) -> None:
        place, width = self.writer.place, self.shared.width if self.shared else 0
        own_BHSD = place.storage.data_NBHSD[0, place.slots_B, :, : self.num_columns - width]
        self.observe(own_BHSD if self.shared is None else self.shared.joined(0, own_BHSD))


@contextmanager
def watch(model: CausalLM) -> Iterator[list[Observed]]:
    """Record every forward of the model within the block, however it is executed."""
    seen: list[Observed] = []

    def observe(observed: CausalLM, call: Call) -> Call:
        if observed is not model:
            return call

        def note(keys_BHSE: Tensor) -> None:
            keys_MSE = keys_BHSE.clone().transpose(1, 2).flatten(2)  # later writes to the storage must not change it
            # If kinds of layers differ, check those that see most: they must see exactly the row.
            seen_BTS = model.architecture.mask_form.widest.of(call.mask())
            seen.append(Observed(call.tokens_BT, call.positions(), seen_BTS, keys_MSE))

        return replace(call, writer=_Watched(call.writer, note))

    observers = model.observers
    observers.append(observe)
    try:
        yield seen
    finally:
        observers.remove(observe)


class _FirstKeysError(Exception):
    """Carries the first layer's keys out of a forward that needs to go no further."""


@dataclass(frozen=True, slots=True)
class _FirstKeys:
    """A writer that stops the forward once the first layer has computed its keys."""

    num_columns: int

    @property
    def shared(self) -> None:
        """None: rows share no columns."""

    @property
    def place(self) -> Place:
        raise NotImplementedError("it is written nowhere")

    def write(self, index: int, states_BHTD: Tensor) -> Tensor:
        raise _FirstKeysError(states_BHTD)

    def written(self) -> None:
        """Never reached."""


@torch.inference_mode()
def first_keys(model: CausalLM, tokens: list[int], positions: list[int]) -> Tensor:
    """The first layer's keys (n, E) of tokens at the given positions."""
    ids_1T, positions_1T = (torch.tensor([values], device=model.device) for values in (tokens, positions))
    mask_1TT = torch.eye(len(tokens), dtype=torch.bool, device=model.device)[None]
    call = Call(ids_1T, Given(positions_1T, mask_1TT), _FirstKeys(len(tokens)), 1, LOGITS)
    try:
        EagerExecution(model.module, model.architecture).run(call)
    except _FirstKeysError as error:
        keys_1HTD: Tensor = error.args[0]
        return keys_1HTD[0].transpose(0, 1).flatten(1)
    raise AssertionError("the forward wrote no keys")


@torch.inference_mode()
def fresh(model: CausalLM, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """A forward over one row alone, run by `transformers`: logits (n, V) and KV (N, H, n, D)."""
    ids = torch.tensor([tokens], device=model.device)
    # A cache made without the model's config keeps every column; the model's own drops those outside a window.
    cache = state_cache(model.module) or DynamicCache()
    output = model.module(ids, **cache_argument(model.module, cache), use_cache=True)
    layers = [layer for layer in returned_cache(output).layers if getattr(layer, "keys", None) is not None]
    if not layers:
        return output.logits[0], model.empty_storage(1, len(tokens)).data_NBHSD[:, 0]
    return output.logits[0], torch.stack([part[0] for layer in layers for part in (layer.keys, layer.values)])
