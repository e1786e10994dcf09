"""What a model receives: tokens, positions, masks, and the keys that the queries of its first layer read.

A key of the first layer depends only on its token and position, as no attention comes before it. Comparing the keys
that a query sees with those of the tokens it should see therefore shows exactly what it sees, in whatever layout a
strategy uses. Shape letters: M rows of the forward, T tokens, S columns, E = heads x size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from specdec.models.cache_argument import cache_argument, returned_cache
from specdec.models.causal_lm import CausalLM
from specdec.models.execution.base import Call
from specdec.models.kv import KVWriter


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
    def num_columns(self) -> int:
        return self.writer.num_columns

    def write(self, index: int, states_BHTD: Tensor) -> Tensor:
        read = self.writer.write(index, states_BHTD)
        if index == 0:
            self.observe(read)
        return read


@contextmanager
def watch(model: CausalLM) -> Iterator[list[Observed]]:
    """Record every forward of the model within the block, however it is executed."""
    seen: list[Observed] = []

    def observe(observed: CausalLM, call: Call) -> Call:
        if observed is not model:
            return call

        def note(keys_BHSE: Tensor) -> None:
            keys_MSE = keys_BHSE.clone().transpose(1, 2).flatten(2)  # later writes to the storage must not change it
            # Where layers of several kinds differ, those that see most must see exactly the row.
            seen_BTS = model.architecture.mask_form.widest.of(call.mask_BTS)
            seen.append(Observed(call.tokens_BT, call.positions_BT, seen_BTS, keys_MSE))

        return replace(call, writer=_Watched(call.writer, note))

    observers = model.observers
    observers.append(observe)
    try:
        yield seen
    finally:
        observers.remove(observe)


class _EnoughError(Exception):
    """Ends a forward once the first layer has computed its keys."""


class _FirstKeys(CacheLayerMixin):
    """A cache layer that keeps the first layer's keys and stops the forward."""

    is_sliding = False
    keys_taken: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys_taken = key_states
        raise _EnoughError

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


@torch.inference_mode()
def first_keys(model: CausalLM, tokens: list[int], positions: list[int]) -> Tensor:
    """The first layer's keys (n, E) of tokens at the given positions."""
    layer = _FirstKeys()
    size = len(tokens)
    mask_BTS = torch.eye(size, dtype=torch.bool, device=model.device)[None]
    with suppress(_EnoughError):
        model.module(
            input_ids=torch.tensor([tokens], device=model.device),
            position_ids=torch.tensor([positions], device=model.device),
            attention_mask=model.architecture.masks(mask_BTS),
            **cache_argument(model.module, Cache(layers=[layer] * (len(model.architecture.kv_shapes) // 2))),
            use_cache=True,
        )
    assert layer.keys_taken is not None
    return layer.keys_taken[0].transpose(0, 1).flatten(1)


@torch.inference_mode()
def fresh(model: CausalLM, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """A forward over one row alone, run by `transformers`: logits (n, V) and KV (N, H, n, D)."""
    ids = torch.tensor([tokens], device=model.device)
    # A cache made without the model's config keeps every column; the model's own drops those outside a window.
    output = model.module(ids, **cache_argument(model.module, DynamicCache()), use_cache=True)
    layers = returned_cache(output).layers
    return output.logits[0], torch.stack([part[0] for layer in layers for part in (layer.keys, layer.values)])
