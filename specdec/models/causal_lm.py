"""One causal language model of `transformers`, run on KV storage that an alignment lays out.

The storage is one tensor for all layers, (N, B, H, S, D) with N = 2 x layers: index 2l holds layer l's keys and
2l + 1 its values. Realigning a batch is then a handful of copies, whatever the number of layers. Where keys and values
have different heads or widths (latent attention, layers of several kinds), H and D are the largest, and a part uses
the first of them; the rest stays zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from specdec.errors import ContractError, PairError
from specdec.models.cache_argument import cache_argument, returned_cache
from specdec.models.execution.base import Call, Execution, Gives
from specdec.models.execution.choice import make_execution
from specdec.models.execution.eager import EagerExecution
from specdec.models.masks import MaskForm, forms
from specdec.models.small_copy import field

GROWTH_COLUMNS = 128
NO_LIMIT = 1 << 30  # tokens of a row, where a config names none

KVShape = tuple[int, int]
"""Heads and width of one layer's keys, or of its values."""


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

    storage: KVStorage
    start: int
    num_columns: int

    def write(self, index: int, states_BHTD: Tensor) -> Tensor:
        """See KVWriter; what is returned is a view."""
        part_BHSD = self.storage.part(index, states_BHTD)
        part_BHSD[:, :, self.start : self.num_columns] = states_BHTD
        return part_BHSD[:, :, : self.num_columns]


@dataclass(frozen=True, slots=True)
class Scattering:
    """Every token of every row writes to a column of its own, in the slot of its row."""

    storage: KVStorage
    places_BHT: Tensor  # where each token's vector goes among the B x H x S of a part
    num_columns: int
    slots: slice | Tensor  # rows that are read: a slice where they are consecutive, for then nothing is copied

    def write(self, index: int, states_BHTD: Tensor) -> Tensor:
        """See KVWriter; what is returned is a view if the slots are consecutive, otherwise a copy."""
        part_BHSD = self.storage.part(index, states_BHTD)
        _, heads, _, size = states_BHTD.shape
        places_M = self.places_BHT[:, :heads].flatten()
        self.storage.vectors(index, size).index_copy_(0, places_M, states_BHTD.reshape(-1, size))
        return part_BHSD[self.slots, :, : self.num_columns]


class KVStorage:
    """Keys and values of a batch of rows, with room to grow; columns beyond ``width`` are unused."""

    def __init__(self, data_NBHSD: Tensor, width: int, shapes: tuple[KVShape, ...]) -> None:
        self.data_NBHSD = data_NBHSD
        self.width = width
        self.shapes = shapes  # of each of the N parts: its heads and width, at most H and D

    @property
    def num_rows(self) -> int:
        """Rows of the batch."""
        return self.data_NBHSD.shape[1]

    def part(self, index: int, states_BHTD: Tensor) -> Tensor:
        """Where such keys or values are kept (B, H, S, D), with the heads and the width that the part has.

        Raises:
            ContractError: the model gives others than it gave when it was asked.
        """
        heads, size = states_BHTD.shape[1], states_BHTD.shape[3]
        if (heads, size) != self.shapes[index]:
            name, expected = ("values" if index % 2 else "keys"), self.shapes[index]
            raise ContractError(
                f"layer {index // 2} writes {name} of {heads} heads x {size}, its storage holds "
                f"{expected[0]} x {expected[1]}"
            )
        return self.data_NBHSD[index, :, :heads, :, :size]

    def vectors(self, index: int, size: int) -> Tensor:
        """A part as its B x H x S vectors, of which the first ``size`` numbers are used."""
        part_BHSD = self.data_NBHSD[index]
        return part_BHSD.view(-1, part_BHSD.shape[-1])[:, :size]

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
        return Appending(self, start, self.width)

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
        places_BHT = heads_BH1 * S + columns_BT[:, None]
        first = slots[0]
        consecutive = slots == list(range(first, first + len(slots)))
        read = slice(first, first + len(slots)) if consecutive else slots_B
        return Scattering(self, places_BHT, num_columns, read)


class CausalLM:
    """A model, and what a forward over aligned storage needs to know about it.

    Args:
        module: a causal language model of `transformers`.
        form: how it takes masks; found by trial in ``specdec.models.compatibility``, and without that the likeliest.
        kv_shapes: heads and width of each layer's keys and values, one after the other; without them the model's own
            cache is asked, by a forward of one token.
    """

    def __init__(self, module: Any, form: MaskForm | None = None, kv_shapes: tuple[KVShape, ...] | None = None) -> None:
        config = module.config.get_text_config()
        self.module = module.eval()
        self.device: torch.device = module.device
        self.dtype: torch.dtype = module.dtype
        self.vocab_size: int = config.vocab_size
        self.context_length: int = context_length(config)
        self.max_columns: int | None = None  # a forward reads no more: the model would no longer be exact
        self.notes: list[str] = []  # for the user
        self.num_layers: int = config.num_hidden_layers
        self.kv_shapes = kv_shapes or measure_kv_shapes(module)
        self.num_kv_heads = max(heads for heads, _ in self.kv_shapes)
        self.head_dim = max(size for _, size in self.kv_shapes)
        num_heads = field(config, "num_attention_heads")
        num_parts = getattr(module, "tp_size", None) or 1  # tensor parallel: each process has a part of the heads
        self.num_heads: int = num_heads // num_parts if isinstance(num_heads, int) else self.num_kv_heads
        self.num_read_weights = _num_read_weights(module)
        self.gives: Gives = "logits"  # the one tensor that alignments pass on, whatever it holds
        self.probes_MD: Tensor | None = None  # embeddings of further ids, from vocab_size on, that a drafter feeds
        self.form = form or forms(module)[0]
        self.execution: Execution = EagerExecution(self)
        self._executions: dict[str, Execution] = {"eager": self.execution}

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return len(self.kv_shapes) * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    def empty_storage(self, num_rows: int, columns: int) -> KVStorage:
        """Storage for ``num_rows`` rows with room for ``columns``, nothing in use."""
        shape = (len(self.kv_shapes), num_rows, self.num_kv_heads, columns, self.head_dim)
        return KVStorage(torch.zeros(shape, dtype=self.dtype, device=self.device), 0, self.kv_shapes)

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

        Raises:
            PairError: the writer holds more columns than the model is exact for (``max_columns``).
        """
        if self.max_columns is not None and writer.num_columns > self.max_columns:
            raise PairError(
                f"{type(self.module).__name__} is exact up to {self.max_columns} columns of its cache and "
                f"{writer.num_columns} are needed: choose a smaller max_new_tokens, gamma, or alignment=inplace"
            )
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
        return self.form.masks(mask_BTS, self.dtype)

    @property
    def window(self) -> int | None:
        """Tokens of the sliding window of those layers that have one."""
        return next((v.size for _, v in self.form.visible if v.kind == "window"), None)


@torch.inference_mode()
def measure_kv_shapes(module: Any) -> tuple[KVShape, ...]:
    """Heads and width of each layer's keys and values, as one token leaves them in the model's own cache."""
    ids = torch.zeros(1, 1, dtype=torch.long, device=module.device)
    layers = returned_cache(module(ids, **cache_argument(module, DynamicCache()), use_cache=True)).layers
    parts = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
    # Layers that read another one's keys have none of their own.
    return tuple((1, 1) if part is None else (int(part.shape[1]), int(part.shape[3])) for part in parts)


def check_supported(config: Any, name: str) -> None:
    """Refuse models whose state cannot be cut back token by token; ``config`` is read before any weight is.

    Raises:
        PairError: naming the model and the reason.
    """
    config = config.get_text_config()
    recurrent = {"linear_attention", "conv", "hybrid", "mamba", "recurrent"}
    kinds = set(field(config, "layer_types") or [])
    fields = {*vars(config), *type(config).attribute_map}
    if "num_attention_heads" not in fields and getattr(config, "sub_configs", None):
        raise PairError(f"{name} ({config.model_type}) is made of several models: it has no one KV cache to cut back")
    if kinds & recurrent or "num_attention_heads" not in fields:
        raise PairError(
            f"{name} ({config.model_type}) keeps a recurrent state that cannot be cut back to the accepted tokens; "
            "speculative decoding here needs attention layers with a KV cache"
        )


def context_length(config: Any) -> int:
    """Longest row in tokens: what the config says, or what its scaled rotations reach.

    With longrope the length that the model was first trained at: beyond it, such a model rotates all rows of a forward
    by other frequencies as soon as one of them is longer. A row would depend on its neighbours, and keys that are
    cached would be of the wrong kind. Yarn, llama3 and linear scale all positions alike, as far as ``factor`` says,
    whether or not ``max_position_embeddings`` was raised with it.
    """
    own = field(config, "max_position_embeddings")
    longest = own if isinstance(own, int) else NO_LIMIT
    rope = field(config, "rope_parameters") or {}
    for kind in (rope, *(part for part in rope.values() if isinstance(part, dict))):  # one, or one per kind of layer
        trained = kind.get("original_max_position_embeddings") or field(config, "original_max_position_embeddings")
        if kind.get("rope_type") == "longrope" and trained:
            longest = min(longest, int(trained))
        elif kind.get("rope_type") in ("yarn", "llama3") and trained and kind.get("factor"):
            longest = max(longest, int(trained * kind["factor"]))
    return longest


def _num_read_weights(module: Any) -> int:
    """Weights that one forward reads: all but the input embedding, unless that is the output's too."""
    parts = (module.get_input_embeddings(), module.get_output_embeddings())
    table, head = (getattr(part, "weight", None) for part in parts)  # an EAGLE layer has no table of its own
    total = sum(int(weight.numel()) for weight in module.parameters())
    return total if table is None or table is head else total - int(table.numel())
