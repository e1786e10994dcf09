"""What a model is really given: tokens, positions, masks and, of the first layer, the keys that its queries read.

The keys of the first layer are a fingerprint of (token, position): nothing of the row reaches them through attention.
So whoever compares the keys that a query sees with those of the tokens it should see, learns exactly what it sees,
whatever the layout that a strategy keeps. Shape letters: M rows of the forward, T tokens, S columns, E = heads x size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from specdec.models.cache_argument import cache_argument, returned_cache
from specdec.models.causal_lm import CausalLM
from specdec.models.kv import KVWriter


@dataclass(frozen=True, slots=True)
class Observed:
    """One forward of a model, as its first layer saw it."""

    tokens_MT: Tensor
    positions_MT: Tensor
    mask_MTS: Tensor
    keys_MSE: Tensor


@dataclass(slots=True)
class _Watched:
    """A writer that keeps what the queries of the first layer read."""

    writer: KVWriter
    keys_BHSE: Tensor | None = None

    @property
    def num_columns(self) -> int:
        """See KVWriter."""
        return self.writer.num_columns

    def write(self, index: int, states_BHTD: Tensor) -> Tensor:
        """See KVWriter."""
        read = self.writer.write(index, states_BHTD)
        if index == 0:
            self.keys_BHSE = read.clone()
        return read


@contextmanager
def watch(model: CausalLM) -> Iterator[list[Observed]]:
    """Record every forward of the model within the block, however it is executed."""
    seen: list[Observed] = []
    forward = model.forward

    def recording(
        tokens_BT: Tensor, positions_BT: Tensor, mask_BTS: Tensor, writer: KVWriter, num_logits: int = 0
    ) -> Tensor:
        watched = _Watched(writer)
        answer = forward(tokens_BT, positions_BT, mask_BTS, watched, num_logits)
        assert watched.keys_BHSE is not None
        keys_MSE = watched.keys_BHSE.transpose(1, 2).flatten(2)
        seen_BTS = model.form.widest.of(mask_BTS)  # where some layers see all, these hold the promise
        seen.append(Observed(tokens_BT, positions_BT, seen_BTS, keys_MSE))
        return answer

    model.forward = recording  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        del model.forward


class _EnoughError(Exception):
    """Ends a forward as soon as the first layer has its keys."""


class _FirstKeys(CacheLayerMixin):
    """A cache layer that takes the first layer's keys and stops the forward."""

    is_sliding = False
    keys_taken: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take the keys."""
        self.keys_taken = key_states
        raise _EnoughError

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Nothing is held."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Nothing is held."""
        return 0

    def get_max_length(self) -> int:
        """No fixed maximum."""
        return -1


@torch.inference_mode()
def first_keys(model: CausalLM, tokens: list[int], positions: list[int]) -> Tensor:
    """The first layer's keys (n, E) of tokens at positions, each for itself."""
    layer = _FirstKeys()
    size = len(tokens)
    mask_BTS = torch.eye(size, dtype=torch.bool, device=model.device)[None]
    with suppress(_EnoughError):
        model.module(
            input_ids=torch.tensor([tokens], device=model.device),
            position_ids=torch.tensor([positions], device=model.device),
            attention_mask=model.masks(mask_BTS),
            **cache_argument(model.module, Cache(layers=[layer] * (len(model.kv_shapes) // 2))),
            use_cache=True,
        )
    assert layer.keys_taken is not None
    return layer.keys_taken[0].transpose(0, 1).flatten(1)


@torch.inference_mode()
def fresh(model: CausalLM, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """A forward over one row alone, as `transformers` itself runs it: logits (n, V) and KV (N, H, n, D)."""
    ids = torch.tensor([tokens], device=model.device)
    # A cache that knows nothing of the model keeps every column; the model's own would drop those behind a window.
    output = model.module(ids, **cache_argument(model.module, DynamicCache()), use_cache=True)
    layers = returned_cache(output).layers
    return output.logits[0], torch.stack([part[0] for layer in layers for part in (layer.keys, layer.values)])
