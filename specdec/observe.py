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

from specdec.model import CausalLM


@dataclass(frozen=True, slots=True)
class Observed:
    """One forward of a model, as its first layer saw it."""

    tokens_MT: Tensor
    positions_MT: Tensor
    mask_MTS: Tensor
    keys_MSE: Tensor


@contextmanager
def watch(model: CausalLM) -> Iterator[list[Observed]]:
    """Record every forward of the model within the block."""
    seen: list[Observed] = []
    keys: list[Tensor] = []

    def before(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        layer = kwargs["past_key_values"].layers[0]
        update = type(layer).update

        def recording(states: Tensor, values: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, Tensor]:
            read: tuple[Tensor, Tensor] = update(layer, states, values, *rest, **options)
            keys[:] = [read[0].transpose(1, 2).flatten(2).clone()]
            return read

        layer.update = recording

    def after(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        del kwargs["past_key_values"].layers[0].update
        seen.append(_observed(kwargs, keys.pop()))

    hooks = [
        model.module.register_forward_pre_hook(before, with_kwargs=True),
        model.module.register_forward_hook(after, with_kwargs=True),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _observed(kwargs: dict[str, Any], keys_MSE: Tensor) -> Observed:
    tokens_MT = kwargs["input_ids"]
    num_new, num_columns = tokens_MT.shape[1], keys_MSE.shape[1]
    columns_S = torch.arange(num_columns, device=keys_MSE.device)
    positions_MT = kwargs.get("position_ids")
    if positions_MT is None:  # what transformers falls back to: the columns
        positions_MT = columns_S[num_columns - num_new :]
    mask = kwargs.get("attention_mask")
    if isinstance(mask, dict):  # one mask per kind of layer: the widest holds the promise
        mask = mask.get("full_attention", next(iter(mask.values())))
    if mask is None:
        mask = columns_S <= columns_S[num_columns - num_new :, None]
    elif mask.dim() == 4:
        mask = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] > torch.finfo(mask.dtype).min / 2
    else:
        mask = mask[:, None].bool() & (columns_S <= columns_S[num_columns - num_new :, None])
    return Observed(
        tokens_MT, positions_MT.expand(tokens_MT.shape), mask.expand(*tokens_MT.shape, num_columns), keys_MSE
    )


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
            past_key_values=Cache(layers=[layer] * model.num_layers),
            use_cache=True,
        )
    assert layer.keys_taken is not None
    return layer.keys_taken[0].transpose(0, 1).flatten(1)


@torch.inference_mode()
def fresh(model: CausalLM, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """A forward over one row alone, as `transformers` itself runs it: logits (n, V) and KV (N, H, n, D)."""
    ids = torch.tensor([tokens], device=model.device)
    # A cache that knows nothing of the model keeps every column; the model's own would drop those behind a window.
    output = model.module(ids, past_key_values=DynamicCache(), use_cache=True)
    layers = output.past_key_values.layers
    return output.logits[0], torch.stack([part[0] for layer in layers for part in (layer.keys, layer.values)])
