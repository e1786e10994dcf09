"""Eager execution: the model's own code in `transformers`, on storage that an alignment lays out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from specdec.models.architecture import Architecture
from specdec.models.cache_argument import cache_argument
from specdec.models.execution.base import Call, Execution
from specdec.models.kv import KVWriter


class _StorageLayer(CacheLayerMixin):
    """A cache layer of `transformers` that stores keys and values through this forward's writer."""

    is_sliding = False
    is_croppable = True

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.writer: KVWriter | None = None
        self.num_past = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The storage exists before the forward."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write (B, H, T, D) keys and values; return all that the queries read."""
        assert self.writer is not None
        return self.writer.write(2 * self.layer, key_states), self.writer.write(2 * self.layer + 1, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the columns that a mask covers."""
        return self.num_past + query_length, 0

    def get_seq_length(self) -> int:
        """Columns before this forward. Positions and masks are always given, so the model derives nothing from it."""
        return self.num_past

    def get_max_length(self) -> int:
        """No fixed maximum."""
        return -1


class EagerExecution(Execution):
    """Runs every architecture with a KV cache, with the framework's overhead per operation."""

    name = "eager"

    def __init__(self, module: Any, architecture: Architecture) -> None:
        self._module = module
        self._architecture = architecture
        self._layers = [_StorageLayer(layer) for layer in range(len(architecture.kv_shapes) // 2)]
        self._cache = cache_argument(module, Cache(layers=list(self._layers)))

    def run(self, call: Call) -> Tensor:
        for layer in self._layers:
            layer.writer, layer.num_past = call.writer, call.writer.num_columns - call.tokens_BT.shape[1]
        options = {} if call.output_kind == "logits" else {"output_hidden_states": True}
        output = self._module(
            **{"inputs_embeds" if call.tokens_BT.is_floating_point() else "input_ids": call.tokens_BT},
            position_ids=call.positions(),
            attention_mask=self._architecture.masks(call.mask()),
            **self._cache,
            use_cache=True,
            logits_to_keep=1 if call.output_kind == "hidden" else call.num_logits,
            **options,
        )
        for layer in self._layers:
            layer.writer = None
        logits_BTV: Tensor = output.logits[:, -call.num_logits :]  # -0 keeps all; some models know no logits_to_keep
        if call.output_kind == "logits":
            return logits_BTV
        hidden_BTD: Tensor = output.hidden_states[-1][:, -call.num_logits :]
        return hidden_BTD if call.output_kind == "hidden" else torch.cat([logits_BTV, hidden_BTD], dim=-1)
