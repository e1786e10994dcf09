"""One causal language model of `transformers`, run on KV storage that an alignment lays out.

The storage is one tensor for all layers, (N, B, H, S, D) with N = 2 x layers: index 2l holds layer l's keys and
2l + 1 its values. Realigning a batch is then a handful of copies, whatever the number of layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from specdec.errors import PairError

GROWTH_COLUMNS = 128


class KVWriter(Protocol):
    """Where the keys and values of one forward go, and what its queries get to read.

    A storage hands one out per forward, so that the layers need not know how the storage is laid out.
    """

    @property
    def num_columns(self) -> int:
        """Columns that a query reads, S: the width of the mask."""

    def write(self, index: int, states_BHTD: Tensor) -> Tensor:
        """Write the new keys (index 2l) or values (2l + 1) of layer l; return all that is read, (B, H, S, D)."""


@dataclass(frozen=True, slots=True)
class Appending:
    """All rows write to the same columns, behind those in use."""

    data_NBHSD: Tensor
    start: int
    num_columns: int

    def write(self, index: int, states_BHTD: Tensor) -> Tensor:
        """See KVWriter; what is returned is a view."""
        part_BHSD = self.data_NBHSD[index]
        part_BHSD[:, :, self.start : self.num_columns] = states_BHTD
        return part_BHSD[:, :, : self.num_columns]


@dataclass(frozen=True, slots=True)
class Scattering:
    """Every token of every row writes to a column of its own, in the slot of its row."""

    data_NBHSD: Tensor
    slots_B: Tensor
    columns_BT: Tensor
    num_columns: int
    consecutive: slice | None  # the slots as a slice, where they are consecutive: then nothing is copied to be read

    def write(self, index: int, states_BHTD: Tensor) -> Tensor:
        """See KVWriter; what is returned is a view if the slots are consecutive, otherwise a copy."""
        part_BHSD = self.data_NBHSD[index]
        part_BHSD[self.slots_B[:, None], :, self.columns_BT] = states_BHTD.transpose(1, 2)
        read = part_BHSD[:, :, : self.num_columns]
        return read[self.slots_B] if self.consecutive is None else read[self.consecutive]


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

    def append(self, num_new: int) -> Appending:
        """The writer of a forward that adds ``num_new`` columns to all rows."""
        start = self.width
        self.reserve(start + num_new)
        self.width = start + num_new
        return Appending(self.data_NBHSD, start, self.width)

    def scatter(self, slots: list[int], columns_BT: Tensor, num_columns: int) -> Scattering:
        """The writer of a forward that writes each token of the rows in ``slots`` to its own column.

        Args:
            slots: the storage's row of each row of the forward.
            columns_BT: where each token goes; all below ``num_columns``, which is what the queries read.
        """
        self.reserve(num_columns)
        self.width = max(self.width, num_columns)
        first = slots[0]
        consecutive = slots == list(range(first, first + len(slots)))
        return Scattering(
            self.data_NBHSD,
            torch.tensor(slots, device=self.data_NBHSD.device),
            columns_BT,
            num_columns,
            slice(first, first + len(slots)) if consecutive else None,
        )


class _StorageLayer(CacheLayerMixin):
    """Adapter: `transformers` hands over one layer's new keys and values, and gets all that its queries read."""

    is_sliding = False
    is_croppable = True

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.writer: KVWriter | None = None
        self.num_past = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the storage exists before the forward."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write (B, H, T, D) keys and values where this forward's writer puts them; return what is read."""
        assert self.writer is not None
        return self.writer.write(2 * self.layer, key_states), self.writer.write(2 * self.layer + 1, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the columns that a mask must cover."""
        return self.num_past + query_length, 0

    def get_seq_length(self) -> int:
        """Columns before this forward; positions and mask are always given, so nothing is derived from it."""
        return self.num_past

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
        kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
        slides = "sliding_attention" in kinds
        self.window: int | None = getattr(config, "sliding_window", None) if slides else None
        self.mixed_layers = getattr(config, "layer_types", None) is not None

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
        writer: KVWriter,
        num_logits: int = 0,
    ) -> Tensor:
        """Run the model on new tokens.

        Args:
            tokens_BT: (B, T) ids. positions_BT: (B, T) positions.
            mask_BTS: (B, T, S) bool: which of the writer's S columns each query sees.
            writer: where the new keys and values go.
            num_logits: how many of the last positions need logits; 0 means all.

        Returns:
            Logits (B, T or num_logits, V).
        """
        for layer in self._layers:
            layer.writer, layer.num_past = writer, writer.num_columns - tokens_BT.shape[1]
        output = self.module(
            input_ids=tokens_BT,
            position_ids=positions_BT,
            attention_mask=self.masks(mask_BTS),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=num_logits,
        )
        for layer in self._layers:
            layer.writer = None
        logits: Tensor = output.logits
        return logits

    def masks(self, mask_BTS: Tensor) -> Tensor | dict[str, Tensor]:
        """The mask in the form that the architecture takes: bool or additive, one or one per kind of layer."""
        if self.window is None:
            return self._mask_4d(mask_BTS)
        # A query sees one column for each of the positions before it, in order of position: so the last `window`
        # of them are those within the window, wherever a strategy put them.
        rank_BTS = mask_BTS.flip(-1).cumsum(-1).flip(-1)
        sliding = self._mask_4d(mask_BTS & (rank_BTS <= self.window))
        if not self.mixed_layers:
            return sliding
        return {"full_attention": self._mask_4d(mask_BTS), "sliding_attention": sliding}

    def _mask_4d(self, mask_BTS: Tensor) -> Tensor:
        mask = mask_BTS[:, None]
        if self._additive:
            lowest = torch.finfo(self.dtype).min
            mask = torch.zeros_like(mask, dtype=self.dtype).masked_fill_(~mask, lowest)
        return mask


def check_supported(config: Any, name: str) -> None:
    """Refuse models whose state cannot be cut back token by token; ``config`` is read before any weight is.

    Raises:
        PairError: naming the model and the reason.
    """
    config = config.get_text_config()
    recurrent = {"linear_attention", "conv", "hybrid", "mamba", "recurrent"}
    kinds = set(getattr(config, "layer_types", None) or [])
    if kinds & recurrent or not hasattr(config, "num_attention_heads"):
        raise PairError(
            f"{name} ({config.model_type}) keeps a recurrent state that cannot be cut back to the accepted tokens; "
            "speculative decoding here needs attention layers with a KV cache"
        )
