"""One causal language model of `transformers`, run on KV storage that an alignment lays out.

The storage is one tensor for all layers, (N, B, H, S, D) with N = 2 x layers: index 2l holds layer l's keys and
2l + 1 its values. Realigning a batch is then a handful of copies, whatever the number of layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from specdec.errors import PairError
from specdec.execution.base import Call, Execution, Gives
from specdec.execution.choice import make_execution
from specdec.execution.eager import EagerExecution
from specdec.execution.fused import within_window

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
    places_M: Tensor  # where each token's vector goes among the B x H x S of a part, one behind the other
    num_columns: int
    slots: slice | Tensor  # rows that are read: a slice where they are consecutive, for then nothing is copied

    def write(self, index: int, states_BHTD: Tensor) -> Tensor:
        """See KVWriter; what is returned is a view if the slots are consecutive, otherwise a copy."""
        part_BHSD = self.data_NBHSD[index]
        size = part_BHSD.shape[-1]
        part_BHSD.view(-1, size).index_copy_(0, self.places_M, states_BHTD.reshape(-1, size))
        return part_BHSD[self.slots, :, : self.num_columns]


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
        _, _, H, S, _ = self.data_NBHSD.shape
        slots_B = torch.tensor(slots, device=self.data_NBHSD.device)
        heads_BH1 = (slots_B[:, None] * H + torch.arange(H, device=slots_B.device))[..., None]
        places_M = (heads_BH1 * S + columns_BT[:, None]).flatten()
        first = slots[0]
        consecutive = slots == list(range(first, first + len(slots)))
        return Scattering(
            self.data_NBHSD, places_M, num_columns, slice(first, first + len(slots)) if consecutive else slots_B
        )


class CausalLM:
    """A model, and what a forward over aligned storage needs to know about it."""

    def __init__(self, module: Any) -> None:
        config = module.config.get_text_config()
        self.module = module.eval()
        self.device: torch.device = module.device
        self.dtype: torch.dtype = module.dtype
        self.vocab_size: int = config.vocab_size
        self.context_length: int = _context_length(config)
        self.num_layers: int = config.num_hidden_layers
        self.num_heads: int = config.num_attention_heads
        self.num_kv_heads: int = getattr(config, "num_key_value_heads", None) or self.num_heads
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // self.num_heads
        num_parts = getattr(module, "tp_size", None) or 1  # tensor parallel: each process has a part of the heads
        self.num_heads, self.num_kv_heads = self.num_heads // num_parts, self.num_kv_heads // num_parts
        self.num_read_weights = _num_read_weights(module)
        self.gives: Gives = "logits"  # the one tensor that alignments pass on, whatever it holds
        self.probes_MD: Tensor | None = None  # embeddings of further ids, from vocab_size on, that a drafter feeds
        self._additive = config._attn_implementation == "eager"
        kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
        slides = "sliding_attention" in kinds
        self.window: int | None = getattr(config, "sliding_window", None) if slides else None
        self.mixed_layers = getattr(config, "layer_types", None) is not None
        self.execution: Execution = EagerExecution(self)
        self._executions: dict[str, Execution] = {"eager": self.execution}

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize

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
            tokens_BT: (B, T) ids, or (B, T, D) embeddings. positions_BT: (B, T) positions.
            mask_BTS: (B, T, S) bool: which of the writer's S columns each query sees.
            writer: where the new keys and values go.
            num_logits: how many of the last positions need logits; 0 means all.

        Returns:
            Logits (B, T or num_logits, V), or what ``gives`` says.
        """
        return self.execution.run(Call(self._fed(tokens_BT), positions_BT, mask_BTS, writer, num_logits, self.gives))

    def execute(self, name: str) -> Execution:
        """Choose how forwards are computed from now on: auto, eager, fused. What is prepared is kept for the next time.

        Raises:
            ConfigError: no such execution, or it cannot run this model.
        """
        if name not in self._executions or not self._executions[name].holds():
            self._executions[name] = make_execution(name, self)
        self.execution = self._executions[name]
        return self.execution

    @contextmanager
    def giving(self, gives: Gives) -> Iterator[None]:
        """Let the forwards within the block return this for each token."""
        before, self.gives = self.gives, gives
        try:
            yield
        finally:
            self.gives = before

    def _fed(self, tokens_BT: Tensor) -> Tensor:
        """What is fed: ids as they are; embeddings (B, T, D) where some may be a drafter's probes."""
        if tokens_BT.is_floating_point() or self.probes_MD is None:
            return tokens_BT
        embeds_BTD = self.module.get_input_embeddings()(tokens_BT.clamp(max=self.vocab_size - 1))
        probe_BT1 = (tokens_BT >= self.vocab_size)[..., None]
        number_BT = (tokens_BT - self.vocab_size).clamp(0, len(self.probes_MD) - 1)
        return torch.where(probe_BT1, self.probes_MD[number_BT], embeds_BTD)

    def masks(self, mask_BTS: Tensor) -> Tensor | dict[str, Tensor]:
        """The mask in the form that the architecture takes: bool or additive, one or one per kind of layer."""
        if self.window is None:
            return self._mask_4d(mask_BTS)
        sliding = self._mask_4d(within_window(mask_BTS, self.window))
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


def _context_length(config: Any) -> int:
    """Longest row in tokens: the config's; with longrope rotations the length that the model was first trained at.

    Beyond that, such a model rotates all rows of a forward by other frequencies as soon as one of them is longer: a row
    would depend on its neighbours, and keys that are cached would be of the wrong kind.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]  # one, or one per kind of layer
    key = "original_max_position_embeddings"
    lengths = [kind.get(key, getattr(config, key, None)) for kind in kinds if kind.get("rope_type") == "longrope"]
    return min(int(length) for length in (config.max_position_embeddings, *lengths) if length is not None)


def _num_read_weights(module: Any) -> int:
    """Weights that one forward reads: all but the input embedding, unless that is the output's too."""
    parts = (module.get_input_embeddings(), module.get_output_embeddings())
    table, head = (getattr(part, "weight", None) for part in parts)  # an EAGLE layer has no table of its own
    total = sum(int(weight.numel()) for weight in module.parameters())
    return total if table is None or table is head else total - int(table.numel())
