"""One causal language model of `transformers`, run on KV storage that an alignment lays out.

The storage is one tensor for all layers, (N, B, H, S, D) with N = 2 x layers: index 2l holds layer l's keys and
2l + 1 its values. Realigning a batch is then a handful of copies, whatever the number of layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from specdec.errors import PairError

GROWTH_COLUMNS = 128


class KVStorage:
    """Keys and values of a batch of rows, with room to grow; columns beyond ``width`` are unused."""

    def __init__(self, data_NBHSD: Tensor, width: int) -> None:
        self.data_NBHSD = data_NBHSD
        self.width = width

    @property
    def num_rows(self) -> int:
        """Rows of the batch."""
        return self.data_NBHSD.shape[1]

    def reserve(self, width: int) -> None:
        """Make room for ``width`` columns. New columns are zero: masked, but finite."""
        N, B, H, S, D = self.data_NBHSD.shape
        if width > S:
            grown = self.data_NBHSD.new_zeros(N, B, H, width + GROWTH_COLUMNS, D)
            grown[..., : self.width, :] = self.data_NBHSD[..., : self.width, :]
            self.data_NBHSD = grown


class _StorageLayer(CacheLayerMixin):
    """Adapter: `transformers` writes one layer's new keys and values, and reads back all columns in use."""

    is_sliding = False
    is_croppable = True

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.storage: KVStorage | None = None
        self.start = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the storage exists before the forward."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write (B, H, T, D) keys and values at the columns of this forward; return all columns in use."""
        assert self.storage is not None
        stop = self.start + key_states.shape[-2]
        keys = self.storage.data_NBHSD[2 * self.layer]
        values = self.storage.data_NBHSD[2 * self.layer + 1]
        keys[:, :, self.start : stop] = key_states
        values[:, :, self.start : stop] = value_states
        return keys[:, :, :stop], values[:, :, :stop]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the columns that a mask must cover."""
        return self.start + query_length, 0

    def get_seq_length(self) -> int:
        """Columns written before this forward."""
        return self.start

    def get_max_length(self) -> int:
        """No fixed maximum."""
        return -1


class CausalLM:
    """A model, and what a forward over aligned storage needs to know about it."""

    def __init__(self, module: Any) -> None:
        config = module.config.get_text_config()
        self.module = module.eval()
        self.device: torch.device = module.device
        self.dtype: torch.dtype = module.dtype
        self.vocab_size: int = config.vocab_size
        self.context_length: int = config.max_position_embeddings
        self.num_layers: int = config.num_hidden_layers
        heads = config.num_attention_heads
        self.num_kv_heads: int = getattr(config, "num_key_value_heads", None) or heads
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // heads
        self._layers = [_StorageLayer(layer) for layer in range(self.num_layers)]
        self._cache = Cache(layers=list(self._layers))
        self._additive = config._attn_implementation == "eager"

    def empty_storage(self, num_rows: int, columns: int) -> KVStorage:
        """Storage for ``num_rows`` rows with room for ``columns``, nothing in use."""
        shape = (2 * self.num_layers, num_rows, self.num_kv_heads, columns, self.head_dim)
        return KVStorage(torch.zeros(shape, dtype=self.dtype, device=self.device), 0)

    @torch.inference_mode()
    def forward(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor,
        mask_BTS: Tensor,
        storage: KVStorage,
        num_logits: int = 0,
    ) -> Tensor:
        """Run the model on new tokens, whose keys and values go to columns ``width .. width + T``.

        Args:
            tokens_BT: (B, T) ids. positions_BT: (B, T) positions.
            mask_BTS: (B, T, S) bool, S = width + T: which column each query sees.
            storage: of B rows; its width grows by T.
            num_logits: how many of the last positions need logits; 0 means all.

        Returns:
            Logits (B, T or num_logits, V).
        """
        num_new = tokens_BT.shape[1]
        storage.reserve(storage.width + num_new)
        for layer in self._layers:
            layer.storage, layer.start = storage, storage.width
        mask = mask_BTS[:, None]
        if self._additive:
            lowest = torch.finfo(self.dtype).min
            mask = torch.zeros_like(mask, dtype=self.dtype).masked_fill_(~mask, lowest)
        output = self.module(
            input_ids=tokens_BT,
            position_ids=positions_BT,
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=num_logits,
        )
        storage.width += num_new
        for layer in self._layers:
            layer.storage = None
        logits: Tensor = output.logits
        return logits


def check_supported(module: Any, name: str) -> None:
    """Refuse models whose state cannot be cut back token by token.

    Raises:
        PairError: naming the model and the reason.
    """
    config = module.config.get_text_config()
    recurrent = {"linear_attention", "conv", "hybrid", "mamba", "recurrent"}
    kinds = set(getattr(config, "layer_types", None) or [])
    if kinds & recurrent or not hasattr(config, "num_attention_heads"):
        raise PairError(
            f"{name} ({config.model_type}) keeps a recurrent state that cannot be cut back to the accepted tokens; "
            "speculative decoding here needs attention layers with a KV cache"
        )
