"""Llamas with something added, replaced or hooked, and the logits that they must give."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from conftest import small_llama
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm
from transformers.models.llama import modeling_llama

from specdec.core.clock import Clock
from specdec.models.causal_lm import CausalLM
from specdec.registry import create

FAST = ("fused", "native")
"""What `auto` may choose in float32: native needs a compiler."""
KV_SHAPES = ((2, 8),) * 6  # of small_llama, for those that cannot be asked by a forward


class Linear(nn.Linear):
    """A low-rank adapter by inheritance; called as PEFT calls its own."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, dtype=base.weight.dtype)
        self.load_state_dict(base.state_dict())
        generator = torch.Generator().manual_seed(0)
        self.down = nn.Parameter(0.2 * torch.randn(2, base.in_features, generator=generator).to(base.weight.dtype))
        self.up = nn.Parameter(0.2 * torch.randn(base.out_features, 2, generator=generator).to(base.weight.dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x @ self.down.T @ self.up.T


class Wrapper(nn.Module):
    """An adapter around a module, whose weight and shape it hands on as PEFT's layers do."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.in_features, self.out_features, self.bias = base.in_features, base.out_features, base.bias

    @property
    def weight(self) -> torch.Tensor:
        return self.base_layer.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1.1 * self.base_layer(x)


Wrapper.__name__ = Wrapper.__qualname__ = "Linear"


class LargerNorm(modeling_llama.LlamaRMSNorm):
    """Weights around 0, as some families have them."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) * 1.2


def replace(path: str, make: Callable[[Any], nn.Module]) -> Callable[[Any], None]:
    """Put another module in the place of one."""

    def tamper(module: Any) -> None:
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, make(module.get_submodule(path)))

    return tamper


def larger(module: Any, given: Any, gave: Any) -> Any:
    return (gave[0] * 1.1, *gave[1:]) if isinstance(gave, tuple) else gave * 1.1


def hooked(path: str, before: bool = False) -> Callable[[Any], None]:
    """A hook that changes what goes in or comes out."""

    def tamper(module: Any) -> None:
        part = module.get_submodule(path)
        if before:
            part.register_forward_pre_hook(lambda module, given: (given[0] * 1.1, *given[1:]))
        else:
            part.register_forward_hook(larger)

    return tamper


def hooked_logits(module: Any) -> None:
    def hook(module: Any, given: Any, gave: Any) -> Any:
        gave.logits = gave.logits * 1.1
        return gave

    module.register_forward_hook(hook)


def patched(path: str) -> Callable[[Any], None]:
    """Replace the forward of one instance, as accelerate and others do."""

    def tamper(module: Any) -> None:
        part = module.get_submodule(path)
        before = part.forward
        part.forward = lambda *given, **named: larger(part, given, before(*given, **named))

    return tamper


def normed(module: Any) -> None:
    nn.utils.weight_norm(module.model.layers[2].mlp.up_proj)
    with torch.no_grad():
        module.model.layers[2].mlp.up_proj.weight_g.mul_(1.2)


def pruned(module: Any) -> None:
    prune.random_unstructured(module.model.layers[1].mlp.down_proj, "weight", amount=0.3)


TAMPERINGS: dict[str, tuple[Callable[[Any], None], str]] = {
    "adapter, last layer's v_proj": (
        replace("model.layers.2.self_attn.v_proj", Linear),
        r"model.layers.2.self_attn.v_proj is a tampering.Linear, not a torch.nn.modules.linear.Linear",
    ),
    "wrapper, second layer's up_proj": (
        replace("model.layers.1.mlp.up_proj", Wrapper),
        r"model.layers.1.mlp.up_proj is a tampering.Linear, not a torch",
    ),
    "adapter on the head": (replace("lm_head", Linear), "lm_head is a tampering.Linear"),
    "wrapped attention": (replace("model.layers.2.self_attn", copy.deepcopy), ""),  # the same class: fused, and right
    "another norm": (
        replace("model.layers.1.post_attention_layernorm", lambda norm: changed_class(norm, LargerNorm)),
        "model.layers.1.post_attention_layernorm is a tampering.LargerNorm",
    ),
    "hook on the model": (hooked_logits, "the model has a forward hook"),
    "hook on a layer": (hooked("model.layers.1"), r"model.layers.1 has a forward hook \(tampering.larger\)"),
    "hook on an MLP": (hooked("model.layers.2.mlp"), "model.layers.2.mlp has a forward hook"),
    "hook before a matrix": (hooked("model.layers.2.self_attn.q_proj", True), "q_proj has a forward hook"),
    "hook before the head": (hooked("lm_head", True), "lm_head has a forward hook"),
    "a forward of its own": (patched("model.layers.0.mlp"), "model.layers.0.mlp has a forward of its own"),
    "weight_norm": (normed, "up_proj has a forward hook"),
    "parametrization": (
        lambda module: spectral_norm(module.model.layers[1].self_attn.o_proj) and None,
        "o_proj is a torch.nn.utils.parametrize.ParametrizedLinear",
    ),
    "pruning": (pruned, "down_proj has a forward hook"),
}


def changed_class(module: Any, kind: type) -> Any:
    module.__class__ = kind
    return module


def tampered(name: str, dtype: torch.dtype = torch.float32) -> CausalLM:
    module = small_llama(3, dtype)
    TAMPERINGS[name][0](module)
    return CausalLM(module)


def own_logits(model: CausalLM, ids: list[int]) -> torch.Tensor:
    """As transformers computes them."""
    with torch.inference_mode():
        logits: torch.Tensor = model.module(torch.tensor([ids]), use_cache=False).logits[0]
    return logits


def aligned_logits(model: CausalLM, ids: list[int]) -> torch.Tensor:
    """By the execution that the model has now."""
    alignment = create("alignment", "inplace", model, Clock())
    alignment.admit([0], [[]])
    with torch.inference_mode():
        logits: torch.Tensor = alignment.forward([0], torch.tensor([ids]))[0]
    return logits


IDS = [5, 60, 1, 17, 17, 33, 2, 48, 9, 10, 11]
