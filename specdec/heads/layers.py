"""A head's decoder layers as a model whose keys and values an alignment keeps: it is fed vectors and gives vectors.

The layers are those of the fused execution, so that a head is as fast as a target's layer of its size.
Shape letters: B rows, T entries fed, M = B x T, D hidden size, X what the first layer is fed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from specdec.core.outputs import NORMED, Outputs
from specdec.heads.shapes import head_dim, num_heads
from specdec.heads.spec import HeadSpec
from specdec.heads.weights import Head
from specdec.models.causal_lm import CausalLM
from specdec.models.execution.base import Call, Execution
from specdec.models.execution.fused import Layer, RMSNorm, Rotation, additive_masks, mask_levels
from specdec.models.execution.linear import Linear
from specdec.models.kv import KVShape
from specdec.models.masks import FULL, MaskForm
from specdec.models.states import NO_STATES

STATES = Outputs(logits=False, hidden=(NORMED,))
"""What a head's model gives: its hidden states, from which a head makes logits where they are needed."""


class FirstOfEagle3(Layer):
    """Reads an embedding and hidden states side by side, with a norm for each; adds to the hidden states."""

    def __init__(self, module: Any, number: int, window: int | None, norm_before_residual: bool) -> None:
        super().__init__(module, number, window)
        self._norm_hidden, self._normed_residual = RMSNorm(module.hidden_norm), norm_before_residual

    def normed(self, x_MX: Tensor) -> Tensor:
        embeds_MD, hidden_MD = x_MX.chunk(2, dim=-1)
        return torch.cat([self.norm_in(embeds_MD), self._norm_hidden(hidden_MD)], dim=-1)

    def residual(self, x_MX: Tensor) -> Tensor:
        hidden_MD = x_MX.chunk(2, dim=-1)[1]
        return self._norm_hidden(hidden_MD) if self._normed_residual else hidden_MD


class FirstOfEagle(Layer):
    """Has no norm before its attention."""

    def normed(self, x_MD: Tensor) -> Tensor:
        return x_MD


class HeadExecution(Execution):
    """The layers, one after the other."""

    name = "head"

    def __init__(self, layers: list[Layer], rotary: Any, finish: Callable[[Tensor], Tensor] | None) -> None:
        self.layers = layers
        self.rotation = Rotation(rotary)
        weight_OI = layers[0].out.weight_OI
        self.levels = mask_levels(weight_OI.dtype, weight_OI.device)
        self._finish = finish

    def run(self, call: Call) -> Tensor:
        """States (B, T, D) for vectors (B, T, X)."""
        x_MD = call.tokens_BT.flatten(0, 1)
        rotation = self.rotation(x_MD, call.positions(), call.writer.num_columns)
        for layer, mask in zip(self.layers, self.masks(call), strict=True):
            x_MD = layer(x_MD, rotation, mask, call.writer)
        if self._finish is not None:
            x_MD = self._finish(x_MD)
        return x_MD.view(*call.tokens_BT.shape[:2], -1)

    def masks(self, call: Call) -> list[Tensor]:
        """(B, 1, G T, S) of each layer: what is added to its scores, for queries folded by key head."""
        by_window = additive_masks(self.layers, call.mask(), self.levels)
        return [by_window[layer.window] for layer in self.layers]


class HeadModule(nn.Module):
    """What a `CausalLM` asks of its module beside its execution."""

    def __init__(self, head: nn.Module | None) -> None:
        super().__init__()
        self._head = head

    def get_output_embeddings(self) -> nn.Module | None:
        """The head that makes logits of the states."""
        return self._head


class HeadModel(CausalLM):
    """Layers of a head for an alignment. Their positions go as far as the target's.

    Args:
        num_weights: that a forward reads.
        output: the module that makes logits of the states.
        sizes: those in which the layers differ from the target's.
    """

    def __init__(
        self,
        target: CausalLM,
        execution: Execution,
        *,
        kv_shapes: tuple[KVShape, ...],
        num_weights: int,
        output: nn.Module | None,
        **sizes: Any,
    ) -> None:
        self.module, self.device, self.dtype = HeadModule(output), target.device, target.dtype
        self.num_layers, self.vocab_size = len(kv_shapes) // 2, target.vocab_size
        sizes |= {"mask_form": MaskForm(((None, FULL),), additive=False), "states": NO_STATES, "has_kv": ()}
        self.architecture = replace(target.architecture, num_layers=self.num_layers, kv_shapes=kv_shapes, **sizes)
        self.num_read_weights = num_weights
        self.context_length, self.max_columns = target.context_length, None
        self.notes, self.observers = [], target.observers
        self.outputs, self._probes_MD = STATES, None
        self._executions, self.execution = {}, execution

    @classmethod
    def of(cls, head: Head, target: CausalLM, execution: HeadExecution, output: nn.Module | None) -> HeadModel:
        """The layers of a folder."""
        layer = head.spec.layer
        count, keys = num_heads(layer)
        return cls(
            target,
            execution,
            kv_shapes=((keys, head_dim(layer)),) * 2 * len(execution.layers),
            num_weights=sum(t.numel() for name, t in head.tensors.items() if "embed_tokens" not in name),
            output=output,
            num_heads=count,
            hidden_size=head.spec.hidden_size,
            intermediate_size=int(layer["intermediate_size"]),
        )


def layer_module(head: Head, number: int) -> Any:
    """The weights of a decoder layer, as the fused execution reads them from a module of `transformers`."""
    spec, name = head.spec, f"layers.{number}"
    size, tensors = head_dim(spec.layer), head.tensors
    attention = {f"{part}_proj": linear(tensors, f"{name}.self_attn.{part}_proj") for part in "qkvo"}
    for part in ("q_norm", "k_norm"):
        if f"{name}.self_attn.{part}.weight" in tensors:
            attention[part] = norm(head, f"{name}.self_attn.{part}")
    mlp = {part: linear(tensors, f"{name}.mlp.{part}") for part in ("gate_proj", "up_proj", "down_proj")}
    norms = {
        part: norm(head, f"{name}.{part}")
        for part in ("input_layernorm", "hidden_norm", "post_attention_layernorm")
        if f"{name}.{part}.weight" in tensors
    }
    norms.setdefault("input_layernorm", norms["post_attention_layernorm"])  # where there is none, it is not read
    return SimpleNamespace(
        self_attn=SimpleNamespace(**attention, head_dim=size, scaling=size**-0.5),
        mlp=SimpleNamespace(**mlp, act_fn=nn.functional.silu),
        **norms,
    )


def target_logits(target: CausalLM, states: Tensor) -> Tensor:
    """(..., V): what the target's own head makes of states (..., D)."""
    head = getattr(target.execution, "head", None) or target.module.get_output_embeddings()
    logits: Tensor = head(states.flatten(0, -2)).unflatten(0, states.shape[:-1])
    return logits


def embeddings(head: Head, target: CausalLM) -> Callable[[Tensor], Tensor]:
    """The head's own table; the target's where it has none, or a copy of that."""
    theirs: Any = target.module.get_input_embeddings()
    table_VD = head.tensors.get("embed_tokens.weight")
    weight = getattr(theirs, "weight", None)
    if table_VD is None or (weight is not None and torch.equal(table_VD, weight)):
        return theirs  # type: ignore[no-any-return]
    return lambda tokens: nn.functional.embedding(tokens, table_VD)


def linear(tensors: Mapping[str, Tensor], name: str) -> Any:
    """A product's weight and bias, if it has one."""
    weight = tensors[f"{name}.weight"]
    return SimpleNamespace(weight=weight, bias=tensors.get(f"{name}.bias"), out_features=len(weight))


def product(head: Head, name: str) -> Linear:
    """A product of the head."""
    part = linear(head.tensors, name)
    return Linear(part.weight, part.bias)


def projected(by: Linear, x_BTX: Tensor) -> Tensor:
    """(B, T, D)."""
    return by(x_BTX.flatten(0, 1)).view(*x_BTX.shape[:2], -1)


def norm(head: Head, name: str) -> Any:
    """A norm's weight, and its epsilon."""
    eps = float(head.spec.layer.get("rms_norm_eps", 1e-6))
    return SimpleNamespace(weight=head.tensors[f"{name}.weight"], variance_epsilon=eps)


def rotary(spec: HeadSpec, device: torch.device) -> Any:
    """The rotary embedding that the head's config asks for."""
    known = ("rope_theta", "rope_scaling", "rope_parameters", "max_position_embeddings")
    config: Any = LlamaConfig(
        hidden_size=spec.hidden_size,
        num_attention_heads=num_heads(spec.layer)[0],
        head_dim=head_dim(spec.layer),
        **{name: spec.layer[name] for name in known if spec.layer.get(name) is not None},
    )
    return LlamaRotaryEmbedding(config).to(device)
