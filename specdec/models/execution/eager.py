"""Eager execution: the model's own code in `transformers`, on storage that an alignment lays out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionLayer

from specdec.models.architecture import Architecture
from specdec.models.cache_argument import cache_argument
from specdec.models.execution.base import Call, Execution
from specdec.models.execution.stepped import Stepper
from specdec.models.kv import KVWriter


class StorageLayer(CacheLayerMixin):
    """A cache layer of `transformers` that stores keys and values through this forward's writer."""

    is_sliding = False
    is_croppable = True

    def __init__(self, layer: int) -> None:
        CacheLayerMixin.__init__(self)
        self.layer = layer  # its number among those with keys and values
        self.writer: KVWriter | None = None
        self.num_past = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The storage exists before the forward."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write (B, H, T, D) keys and values; return all that the queries read."""
        return self._written(2 * self.layer, key_states), self._written(2 * self.layer + 1, value_states)

    def _written(self, index: int, states_BHTD: Tensor) -> Tensor:
        """All that the queries read: the model's own attention takes shared columns as a copy per row."""
        assert self.writer is not None
        own_BHSD, shared = self.writer.write(index, states_BHTD), self.writer.shared
        return own_BHSD if shared is None else shared.joined(index, own_BHSD)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the columns that a mask covers."""
        return self.num_past + query_length, 0

    def get_seq_length(self) -> int:
        """Columns before this forward. Positions and masks are always given, so the model derives nothing from it."""
        return self.num_past

    def get_max_length(self) -> int:
        """No fixed maximum."""
        return -1


class StateLayer(LinearAttentionLayer, StorageLayer):  # type: ignore[misc, override]
    """A layer with recurrent states, and perhaps keys and values."""

    is_croppable = False

    def __init__(self, layer: int, number_of_states: int) -> None:
        StorageLayer.__init__(self, layer)
        LinearAttentionLayer.__init__(self, number_of_states)


def cache_layers(architecture: Architecture) -> list[Any]:
    """A layer for each of the model's; the storage has parts for those with keys and values only."""
    made: list[Any] = []
    place = 0
    for number, has_kv in enumerate(architecture.layers_with_kv):
        states = [part.number for part in architecture.states.parts if part.layer == number]
        made.append(StateLayer(place, max(states) + 1) if states else StorageLayer(place))
        place += has_kv
    return made


class EagerExecution(Execution):
    """Runs every architecture with a KV cache, with the framework's overhead per operation."""

    name = "eager"
    shares = True

    def __init__(self, module: Any, architecture: Architecture) -> None:
        self._module = module
        self._architecture = architecture
        self._layers = cache_layers(architecture)
        self._cache = cache_argument(module, Cache(layers=list(self._layers)))
        self._stepper = Stepper(module, architecture.states, self._layers) if architecture.states.parts else None

    def run(self, call: Call) -> Tensor:
        if self._stepper is None:
            return self._forward(call)
        with self._stepper.running(call):
            return self._forward(call)

    def _forward(self, call: Call) -> Tensor:
        for layer in self._layers:
            layer.writer, layer.num_past = call.writer, call.writer.num_columns - call.tokens_BT.shape[1]
        options: dict[str, Any] = {"output_hidden_states": True} if call.outputs.hidden else {}
        if any(self._architecture.layers_with_kv):  # others have neither positions nor masks
            masks = self._architecture.masks(call.mask())
            options |= {"position_ids": call.positions(), "attention_mask": masks}
        output = self._module(
            **{"inputs_embeds" if call.tokens_BT.is_floating_point() else "input_ids": call.tokens_BT},
            **self._cache,
            use_cache=True,
            logits_to_keep=call.num_logits if call.outputs.logits else 1,
            **options,
        )
        for layer in self._layers:
            layer.writer = None
        parts = [output.logits] if call.outputs.logits else []
        parts += [output.hidden_states[number] for number in call.outputs.hidden]
        parts = [part[:, -call.num_logits :] for part in parts]  # -0 keeps all; some models know no logits_to_keep
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
