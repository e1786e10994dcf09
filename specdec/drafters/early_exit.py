"""Drafting with the target's own first layers, its final norm and its head: early exit, at no memory for weights.

Source: Elhoushi et al. 2024 (LayerSkip), arXiv 2404.16710, self-speculative decoding; here for any checkpoint, whether
or not it was trained to be left early. The draft has a KV cache of its own.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from specdec.drafters.base import Draft, Drafter
from specdec.drafters.context import DrafterContext
from specdec.drafters.steps import ChainDrafts
from specdec.errors import ConfigError
from specdec.model import CausalLM
from specdec.sequence import Sequence


class SelfDrafter(Drafter):
    """Chain drafts from the target's first ``num_layers`` layers."""

    def __init__(self, context: DrafterContext, *, num_layers: int = 2) -> None:
        available = context.target.num_layers
        if not 1 <= num_layers <= available:
            raise ConfigError(f"drafter.num_layers={num_layers}: choose 1 to {available}, the target's layers")
        draft = CausalLM(first_layers(context.target.module, num_layers))
        self._chains = ChainDrafts(draft, context.align(draft))

    def admit(self, rows: list[Sequence]) -> None:
        """Prefill the prompts."""
        self._chains.admit(rows)

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        """One token per step and row."""
        return self._chains.propose(rows, gammas)

    def commit(self, rows: list[Sequence]) -> None:
        """Drop what was drafted beyond the emitted tokens."""
        self._chains.commit(rows)

    def release(self, rows: list[Sequence]) -> None:
        """Forget rows and their cache."""
        self._chains.release(rows)


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
