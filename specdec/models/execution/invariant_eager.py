"""The invariant execution by the model's own code in `transformers`, whose attention is replaced by that of the list.

Shape letters: M tokens of the list, H query heads, E head size, X any.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from specdec.errors import ConfigError
from specdec.models.architecture import Architecture
from specdec.models.execution.base import Call
from specdec.models.execution.eager import EagerExecution
from specdec.models.execution.invariant import Heads, Invariant, Operation
from specdec.models.execution.packed import Packed

ATTENTION = "specdec_invariant"
"""The name under which the attention of a list is known to `transformers` while such a forward runs."""
HARMLESS = (
    *("scaling", "dropout", "sliding_window", "is_causal", "position_ids", "use_cache", "cache_position"),
    "output_hidden_states",
)
"""Arguments of an attention function that the list's attention knows, or that change nothing in it."""
NUM_OBSERVED = 7


class InvariantEager(Invariant, EagerExecution):
    """The model's own code on lists of tokens, with another attention function."""

    def __init__(self, module: Any, architecture: Architecture) -> None:
        super().__init__(module, architecture)
        self._configs = list({id(p.config): p.config for p in module.modules() if hasattr(p, "config")}.values())
        self._cuts = "logits_to_keep" in inspect.signature(type(module).forward).parameters
        self._operations: list[Operation] | None = None
        self._heads: dict[Heads, None] = {}

    def run_list(self, packed: Packed, call: Call, wanted_M: Tensor) -> Tensor:
        for layer in self._layers:
            layer.writer, layer.num_past = packed, 0
        tokens = call.tokens_BT.flatten(0, 1)[packed.index_M][None]
        options = {"output_hidden_states": True} if call.outputs.hidden else {}
        with self._own_attention(partial(_attend, packed)):
            output = self._module(
                **{"inputs_embeds" if tokens.is_floating_point() else "input_ids": tokens},
                position_ids=call.positions().flatten()[packed.index_M][None],
                attention_mask=self._architecture.masks(packed.mask()),
                **self._cache,
                use_cache=True,
                logits_to_keep=wanted_M,
                **options,
            )
        for layer in self._layers:
            layer.writer = None
        logits_MV: Tensor = output.logits[0] if self._cuts else output.logits[0, wanted_M]
        parts = [logits_MV] if call.outputs.logits else []
        parts += [output.hidden_states[number][0, wanted_M] for number in call.outputs.hidden]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def sizes(self) -> tuple[int, int]:
        return self._architecture.vocab_size, self._architecture.hidden_size

    @contextmanager
    def _own_attention(self, function: Callable[..., tuple[Tensor, None]]) -> Iterator[None]:
        """Let all parts of the model call this attention function within the block."""
        before = [config._attn_implementation_internal for config in self._configs]
        ALL_ATTENTION_FUNCTIONS.register(ATTENTION, function)
        for config in self._configs:
            config._attn_implementation_internal = ATTENTION
        try:
            yield
        finally:
            for config, name in zip(self._configs, before, strict=True):
                config._attn_implementation_internal = name

    def operations(self) -> list[Operation]:
        if self._operations is None:
            self._operations = self._observed()
        return self._operations

    def heads(self) -> list[Heads]:
        self.operations()
        return list(self._heads)

    @torch.inference_mode()
    def _observed(self) -> list[Operation]:
        """The parts without parts of their own that a forward of a few tokens calls, one of each kind."""
        found: dict[Any, Operation] = {}

        def note(part: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any, name: str) -> None:
            x = inputs[0] if len(inputs) == 1 and not options else None
            if not isinstance(x, Tensor) or not x.is_floating_point() or x.shape[:2] != (1, NUM_OBSERVED):
                return
            shapes = [tuple(weight.shape) for weight in part.parameters()]
            found.setdefault((type(part), str(shapes), x.shape), _part_operation(name, part, tuple(x.shape[2:])))

        def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **options: Any) -> Any:
            _refuse_options(options)
            sizes = Heads(query.shape[1], key.shape[1], query.shape[3], value.shape[3], options.get("scaling"))
            self._heads[sizes] = None
            return query.new_zeros(*query.shape[:3], value.shape[3]).transpose(1, 2), None

        leaves = [(name, part) for name, part in self._module.named_modules() if not any(part.children())]
        hooks = [part.register_forward_hook(partial(note, name=name), with_kwargs=True) for name, part in leaves]
        ids_1M = torch.arange(1, NUM_OBSERVED + 1, device=self._module.device)[None]
        try:
            with self._own_attention(attend):
                self._module(ids_1M, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        if not self._heads:
            raise ConfigError("numerics=invariant: the model's attention cannot be replaced; set numerics=default")
        return list(found.values())


def _part_operation(name: str, part: nn.Module, shape: tuple[int, ...]) -> Operation:
    """What a module without parts of its own does with each token."""
    run = _without_batch(part)
    if not isinstance(part, nn.Linear | Conv1D):
        return Operation(name, run, shape, 0, in_float32=lambda: _without_batch(copy.deepcopy(part).float()))

    def with_weight(weight_OI: Tensor) -> Callable[[Tensor], Tensor]:
        weight = weight_OI if isinstance(part, nn.Linear) else weight_OI.t().contiguous()
        others = {"weight": weight} | ({} if part.bias is None else {"bias": torch.zeros_like(part.bias)})
        return lambda x_MI: functional_call(part, others, (x_MI[None],))[0]

    return Operation(name, run, shape, part.weight.numel(), with_weight)


def _without_batch(part: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x_MX: part(x_MX[None])[0]


def _attend(
    packed: Packed,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """An attention function as `transformers` calls it, (1, H, M, E) queries to (1, M, H, E)."""
    _refuse_options(options)
    return packed.attend(query, key, value, attention_mask, scaling)[None], None


def _refuse_options(options: dict[str, Any]) -> None:
    """Raise for an argument that would change what attention computes."""
    for name, value in options.items():
        if name not in HARMLESS and value is not None and value is not False:
            raise ConfigError(f"numerics=invariant knows no attention with {name}: set numerics=default")
