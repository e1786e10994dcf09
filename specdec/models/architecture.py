"""What a model's config and modules say about it: sizes, keys and values, masks, and the longest row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from specdec.errors import PairError
from specdec.models.cache_argument import cache_argument, returned_cache
from specdec.models.kv import KVShape
from specdec.models.masks import MaskForm, forms
from specdec.models.small_copy import field
from specdec.models.states import NO_STATES, States, measure_states, recurrent_layers, state_cache

NO_LIMIT = 1 << 30  # tokens of a row, where a config names no limit


@dataclass(frozen=True, slots=True)
class Architecture:
    """The sizes of a model, the shapes of its keys and values, and the masks that it takes."""

    num_layers: int
    num_heads: int  # in this process: with tensor parallelism each process has a part of them
    kv_shapes: tuple[KVShape, ...]  # of each layer's keys, then its values; of layers that have them
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    dtype: torch.dtype
    mask_form: MaskForm
    eager_attention: bool = False  # whether attention scores are written to memory
    states: States = NO_STATES  # recurrent ones
    has_kv: tuple[bool, ...] = ()  # by layer, where not all have keys and values

    @classmethod
    def of(cls, module: Any, form: MaskForm | None, kv_shapes: tuple[KVShape, ...] | None) -> Architecture:
        """Read it from a loaded model.

        Args:
            form: without it, the form that the model most probably takes.
            kv_shapes: without them, the model runs one token and its own cache is read.
        """
        config = module.config.get_text_config()
        states, has_kv = NO_STATES, tuple[bool, ...]()
        if kv_shapes is None:
            kv_shapes, has_kv, states = measured(module)
        num_heads, intermediate = field(config, "num_attention_heads"), field(config, "intermediate_size")
        num_parts = getattr(module, "tp_size", None) or 1
        num_heads = num_heads // num_parts if isinstance(num_heads, int) else max(heads for heads, _ in kv_shapes)
        hidden_size = field(config, "hidden_size") or num_heads * max(size for _, size in kv_shapes)
        return cls(
            num_layers=config.num_hidden_layers,
            num_heads=num_heads,
            kv_shapes=kv_shapes,
            hidden_size=hidden_size,
            intermediate_size=intermediate if isinstance(intermediate, int) else 4 * hidden_size,
            vocab_size=config.vocab_size,
            dtype=module.dtype,
            mask_form=form or forms(module)[0],
            eager_attention=config._attn_implementation == "eager",
            states=states,
            has_kv=has_kv,
        )

    @property
    def num_kv_heads(self) -> int:
        """Most key or value heads of any layer."""
        return max(heads for heads, _ in self.kv_shapes)

    @property
    def head_dim(self) -> int:
        """Largest width of a key or value head."""
        return max(size for _, size in self.kv_shapes)

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return len(self.kv_shapes) * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def layers_with_kv(self) -> tuple[bool, ...]:
        """By layer of the cache: whether it has keys and values."""
        return self.has_kv or (True,) * (len(self.kv_shapes) // 2)

    def masks(self, mask_BTS: Tensor) -> Tensor | dict[str, Tensor]:
        """The model's ``attention_mask``: bool or additive, one for all layers or one per layer type."""
        return self.mask_form.masks(mask_BTS, self.dtype)


@torch.inference_mode()
def measured(module: Any) -> tuple[tuple[KVShape, ...], tuple[bool, ...], States]:
    """What the model's own cache holds after one token.

    Returns:
        heads and width of each layer's keys and values; with recurrent states, by layer whether it has any; the states.

    Raises:
        PairError: a recurrent state cannot be restored.
    """
    cache = state_cache(module)
    if cache is not None:
        states = measure_states(module, cache)
        has_kv = tuple(getattr(layer, "keys", None) is not None for layer in cache.layers)
        layers = [layer for layer, has in zip(cache.layers, has_kv, strict=True) if has]
        return tuple(_shapes(layers)) or ((1, 1), (1, 1)), has_kv, states
    ids = torch.zeros(1, 1, dtype=torch.long, device=module.device)
    output = module(ids, **cache_argument(module, DynamicCache()), use_cache=True)
    return tuple(_shapes(returned_cache(output).layers)), (), NO_STATES


def _shapes(layers: Iterable[Any]) -> Iterator[KVShape]:
    for part in (getattr(layer, name, None) for layer in layers for name in ("keys", "values")):
        # A layer that shares the keys of another has none of its own.
        yield (1, 1) if part is None else (int(part.shape[1]), int(part.shape[3]))


def check_supported(config: Any, name: str) -> None:
    """Refuse models that keep no cache which could be cut back; needs only the config, no weights.

    Raises:
        PairError: naming the model and the reason.
    """
    config = config.get_text_config()
    fields = {*vars(config), *type(config).attribute_map}
    if "num_attention_heads" not in fields and getattr(config, "sub_configs", None):
        raise PairError(
            f"{name} ({config.model_type}) consists of several models: there is no single KV cache to cut back"
        )
    if "num_attention_heads" not in fields and not recurrent_layers(config):
        raise PairError(
            f"{name} ({config.model_type}) keeps a recurrent state outside of the caches of transformers, so it cannot "
            "be restored at the accepted tokens"
        )


def context_length(config: Any) -> int:
    """Longest row in tokens: the config's limit, or the range of its scaled rotary positions.

    For longrope it is the original training length: past it, the model rotates all rows of a forward by other
    frequencies as soon as one of them is longer, so a row would depend on its neighbours and cached keys would be
    wrong. Yarn and llama3 scale all positions alike, up to ``factor`` times the original length, whether or not
    ``max_position_embeddings`` was raised with it.
    """
    own = field(config, "max_position_embeddings")
    longest = own if isinstance(own, int) else NO_LIMIT
    rope = field(config, "rope_parameters") or {}
    for kind in (rope, *(part for part in rope.values() if isinstance(part, dict))):  # one, or one per layer type
        trained = kind.get("original_max_position_embeddings") or field(config, "original_max_position_embeddings")
        if kind.get("rope_type") == "longrope" and trained:
            longest = min(longest, int(trained))
        elif kind.get("rope_type") in ("yarn", "llama3") and trained and kind.get("factor"):
            longest = max(longest, int(trained * kind["factor"]))
    return longest


def num_read_weights(module: Any) -> int:
    """Weights that one forward reads: all but the input embedding, unless it is tied to the output."""
    parts = (module.get_input_embeddings(), module.get_output_embeddings())
    table, head = (getattr(part, "weight", None) for part in parts)  # an EAGLE layer has no embedding table
    total = sum(int(weight.numel()) for weight in module.parameters())
    return total if table is None or table is head else total - int(table.numel())
