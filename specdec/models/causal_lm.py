"""One causal language model of `transformers`, run on KV storage that an alignment lays out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from specdec.errors import PairError
from specdec.models.cache_argument import cache_argument, returned_cache
from specdec.models.execution.base import Call, Execution, Gives
from specdec.models.execution.choice import make_execution
from specdec.models.execution.eager import EagerExecution
from specdec.models.kv import KVShape, KVStorage, KVWriter
from specdec.models.masks import MaskForm, forms
from specdec.models.small_copy import field

NO_LIMIT = 1 << 30  # tokens of a row, where a config names none


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
