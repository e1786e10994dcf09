"""Drafting with the target itself: by its first layers, final norm and head, or with a sparse view of its cache.

Source: Elhoushi et al. 2024 (LayerSkip), arXiv 2404.16710, self-speculative decoding by early exit; here for any
checkpoint, trained for early exit or not. That draft has a KV cache of its own; draft_cache.py has the sparse view.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from specdec.alignment.base import Alignment
from specdec.config.windows import check_self
from specdec.drafters.context import DrafterContext
from specdec.drafters.draft_cache import OwnCache, TargetCache, check_windowed
from specdec.drafters.model_tree import ModelTreeDrafter
from specdec.drafters.trained import loaded, plain_head, read_settings
from specdec.errors import ConfigError
from specdec.models.causal_lm import CausalLM

FIRST_LAYERS = 2  # that draft, if nothing is said


class SelfDrafter(ModelTreeDrafter):
    """Drafts from the target's first ``num_layers`` layers, or with a window from all, which see a part of a row."""

    def __init__(
        self, context: DrafterContext, *, num_layers: int | None = None, window: int | None = None, sinks: int = 4
    ) -> None:
        check_self(num_layers, window, sinks)
        if window is not None:
            check_windowed(context.target, "target")
            if context.selector is not None and context.selector.reads_states:
                raise ConfigError(
                    "drafter.window with drafter=self: the selector reads the draft's states of a row's last two "
                    "tokens, and this draft is fed one; choose selector=none"
                )
            self.reads_cache = True
            super().__init__(context.target, TargetCache(window, sinks), context.tree, context.selector)
            return
        num_layers = FIRST_LAYERS if num_layers is None else num_layers
        _check_layers(num_layers, context.target)
        draft = CausalLM(first_layers(context.target.module, num_layers), context.target.architecture.mask_form)
        super().__init__(draft, OwnCache(context.align(draft)), context.tree, context.selector)

    def attach(self, target: Alignment) -> None:
        if not self.reads_cache:
            return
        if not target.feeds_given_only:
            raise ConfigError(
                "drafter.window with drafter=self: this alignment may feed committed tokens again, which would then "
                "see no more than the draft does; set alignment=inplace"
            )
        self._cache.alignment = target


class EarlyExit(nn.Module):
    """A norm and a head after the target's first layers; before training they are copies of the target's own."""

    def __init__(self, target: Any) -> None:
        super().__init__()
        decoder, norm = final_norm(target)
        self.norm = copy.deepcopy(getattr(decoder, norm))
        theirs = plain_head(target.get_output_embeddings())
        self.head = nn.Linear(theirs.in_features, theirs.out_features, bias=theirs.bias is not None)
        self.head.load_state_dict(theirs.state_dict())


class EarlyExitDrafter(ModelTreeDrafter):
    """Drafts from the first layers and a trained norm and head: better drafts for the memory of one head."""

    def __init__(self, context: DrafterContext, *, path: str | None, untrained: bool, num_layers: int) -> None:
        target = context.target
        num_layers = read_settings("early_exit", path, untrained, target, layer=num_layers)["layer"]
        _check_layers(num_layers, target)
        exit_head = loaded(EarlyExit(target.module), path, target)
        draft = CausalLM(with_exit_head(target.module, num_layers, exit_head), target.architecture.mask_form)
        super().__init__(draft, OwnCache(context.align(draft)), context.tree, context.selector)


def _check_layers(num_layers: int, target: CausalLM) -> None:
    if not 1 <= num_layers <= target.num_layers:
        raise ConfigError(f"drafter.num_layers={num_layers}: choose 1 to {target.num_layers}, the target's layers")


def with_exit_head(module: Any, num_layers: int, exit_head: EarlyExit) -> Any:
    """The target's first layers with another norm and head; the target itself is not changed."""
    short = first_layers(module, num_layers)
    _, norm = final_norm(module)
    short._modules[module.base_model_prefix]._modules[norm] = exit_head.norm
    head = module.get_output_embeddings()
    short._modules[next(name for name, child in module.named_children() if child is head)] = exit_head.head
    return short


def final_norm(module: Any) -> tuple[Any, str]:
    """The decoder, and the name of the norm after its layers.

    Raises:
        ConfigError: none is found.
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
    """The target without its later layers; all modules are shared with it.

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
    kinds = getattr(config, "layer_types", None) or []
    if len(kinds) > num_layers:  # some configs derive them from the number of layers
        config.layer_types = kinds[:num_layers]
    short_decoder = _twin(decoder, config)
    short_decoder._modules[name] = nn.ModuleList(list(getattr(decoder, name))[:num_layers])
    short = _twin(module, config)
    short._modules[module.base_model_prefix] = short_decoder
    return short.eval()


def _twin(module: Any, config: Any) -> Any:
    """A module with the same parts, which can be exchanged without changing the original."""
    twin = copy.copy(module)
    twin.__dict__["_modules"] = dict(module._modules)
    twin.config = config
    return twin
