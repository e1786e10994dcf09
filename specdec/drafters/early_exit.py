"""Drafting with the target's own first layers, its final norm and its head: early exit, at no memory for weights.

Source: Elhoushi et al. 2024 (LayerSkip), arXiv 2404.16710, self-speculative decoding; here for any checkpoint, whether
or not it was trained to be left early. The draft has a KV cache of its own.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from specdec.config.drafter_weights import check_weights
from specdec.drafters.chain import ChainDrafter
from specdec.drafters.context import DrafterContext
from specdec.drafters.trained import load_weights, placed, plain_head, read_settings
from specdec.errors import ConfigError
from specdec.models.causal_lm import CausalLM


class SelfDrafter(ChainDrafter):
    """Chain drafts from the target's first ``num_layers`` layers."""

    def __init__(self, context: DrafterContext, *, num_layers: int = 2) -> None:
        available = context.target.num_layers
        if not 1 <= num_layers <= available:
            raise ConfigError(f"drafter.num_layers={num_layers}: choose 1 to {available}, the target's layers")
        draft = CausalLM(first_layers(context.target.module, num_layers), context.target.architecture.mask_form)
        super().__init__(draft, context.align(draft))


class EarlyExit(nn.Module):
    """A norm and a head behind the target's first layers; before training they are copies of the target's own."""

    def __init__(self, target: Any) -> None:
        super().__init__()
        decoder, norm = final_norm(target)
        self.norm = copy.deepcopy(getattr(decoder, norm))
        theirs = plain_head(target.get_output_embeddings())
        self.head = nn.Linear(theirs.in_features, theirs.out_features, bias=theirs.bias is not None)
        self.head.load_state_dict(theirs.state_dict())


class EarlyExitDrafter(ChainDrafter):
    """Chain drafts from the first layers and a trained norm and head: better drafts for the memory of one head."""

    def __init__(
        self, context: DrafterContext, *, path: str | None = None, untrained: bool = False, num_layers: int = 2
    ) -> None:
        check_weights("early_exit", path, untrained)
        target = context.target
        settings: dict[str, Any] = {"layer": num_layers}
        if path is not None:
            settings = read_settings(path, "early_exit", target)
        if not 1 <= settings["layer"] <= target.num_layers:
            raise ConfigError(f"drafter.num_layers={num_layers}: choose 1 to {target.num_layers}, the target's layers")
        leaving = EarlyExit(target.module)
        if path is not None:
            load_weights(path, leaving)
        draft = CausalLM(
            with_exit_head(target.module, settings["layer"], placed(leaving, target)), target.architecture.mask_form
        )
        super().__init__(draft, context.align(draft))


def with_exit_head(module: Any, num_layers: int, leaving: EarlyExit) -> Any:
    """The target's first layers with a norm and a head of their own; nothing of the target is changed."""
    short = first_layers(module, num_layers)
    _, norm = final_norm(module)
    short._modules[module.base_model_prefix]._modules[norm] = leaving.norm
    head = module.get_output_embeddings()
    short._modules[next(name for name, child in module.named_children() if child is head)] = leaving.head
    return short


def final_norm(module: Any) -> tuple[Any, str]:
    """The decoder, and the name of the norm behind its layers.

    Raises:
        ConfigError: there is none to be found.
    """
    decoder = getattr(module, module.base_model_prefix, None)
    names = [name for name, _ in decoder.named_children()] if decoder is not None else []
    norms = [name for name in names if "norm" in name.lower() or name.lower().startswith("ln")]
    if not norms:
        raise ConfigError(
            f"drafter=early_exit finds no final norm in a {type(module).__name__}; choose another drafter"
        )
    return decoder, norms[-1]


def first_layers(module: Any, num_layers: int) -> Any:
    """The same modules, but for the layers behind the first ones: nothing is copied.

    Raises:
        ConfigError: the model does not keep its layers in one list.
    """
    decoder = getattr(module, module.base_model_prefix, None)
    total = module.config.num_hidden_layers
    children = decoder.named_children() if decoder is not None else []
    name = next((n for n, c in children if isinstance(c, nn.ModuleList) and len(c) == total), None)
    if name is None:
        raise ConfigError(f"drafter=self does not find the layers of a {type(module).__name__}; choose another drafter")
    config = copy.deepcopy(module.config)
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num_layers]
    short_decoder = _twin(decoder, config)
    short_decoder._modules[name] = nn.ModuleList(list(getattr(decoder, name))[:num_layers])
    short = _twin(module, config)
    short._modules[module.base_model_prefix] = short_decoder
    return short.eval()


def _twin(module: Any, config: Any) -> Any:
    """A module with the same parts under the same names, whose parts can be exchanged without touching the first."""
    twin = copy.copy(module)
    twin.__dict__["_modules"] = dict(module._modules)
    twin.config = config
    return twin
