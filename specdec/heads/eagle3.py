"""EAGLE-3 and 3.1: a decoder layer over (token embedding, hidden states of several layers of the target), and a head.

The hidden states of the layers, side by side, are projected to the head's width; 3.1 norms each of them before that.
It continues from its outputs, before the last norm or (3.1) after it, and may draft a part of the vocabulary only.
Source: Li et al. 2025, arXiv 2503.01840 (EAGLE-3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from specdec.drafters.context import DrafterContext
from specdec.heads.layers import (
    FirstOfEagle3,
    HeadExecution,
    HeadModel,
    embeddings,
    layer_module,
    norm,
    product,
    projected,
    rotary,
)
from specdec.heads.steps import StepDrafter, Stepping
from specdec.heads.vocabulary import DraftVocabulary
from specdec.heads.weights import Head, head_of
from specdec.models.causal_lm import CausalLM
from specdec.models.execution.fused import Layer, RMSNorm


class Eagle3(Stepping):
    """Both layouts; P-EAGLE has the same layers."""

    def __init__(self, head: Head, target: CausalLM) -> None:
        config, spec = head.spec.config, head.spec
        windows = spec.windows
        first = FirstOfEagle3(layer_module(head, 0), 0, windows[0], bool(config.get("norm_before_residual")))
        layers = [first, *(Layer(layer_module(head, n), n, windows[n]) for n in range(1, spec.num_layers))]
        self._norm, self._normed_output = RMSNorm(norm(head, "norm")), bool(config.get("norm_output"))
        finish = self._norm if self._normed_output else None
        output = nn.ParameterList([nn.Parameter(head.tensors["lm_head.weight"], requires_grad=False)])
        execution = self.execution(head, layers, rotary(spec, target.device), finish)
        self.model: CausalLM = HeadModel.of(head, target, execution, output)
        self.hidden_layers, self.embed = head.hidden_layers, embeddings(head, target)
        self._project, self._head = product(head, "fc"), product(head, "lm_head")
        self.vocabulary = DraftVocabulary(head, target.vocab_size)
        each = [f"fc_norm.{i}" for i in range(len(head.hidden_layers))] if config.get("fc_norm") else []
        self._norms = [RMSNorm(norm(head, name)) for name in each]
        self._norm_all = RMSNorm(norm(head, "input_norm")) if "input_norm.weight" in head.tensors else None

    def execution(self, head: Head, layers: list[Layer], rotary: Any, finish: Any) -> HeadExecution:
        """How the layers are computed."""
        return HeadExecution(layers, rotary, finish)

    def features(self, hidden_BTH: Tensor) -> Tensor:
        if self._norms:
            parts = hidden_BTH.chunk(len(self._norms), dim=-1)
            hidden_BTH = torch.cat([n(part) for n, part in zip(self._norms, parts, strict=True)], dim=-1)
        elif self._norm_all is not None:
            hidden_BTH = self._norm_all(hidden_BTH)
        return projected(self._project, hidden_BTH)

    def inputs(self, embeds_BTD: Tensor, features_BTD: Tensor) -> Tensor:
        return torch.cat([embeds_BTD, features_BTD], dim=-1)

    def logits(self, states: Tensor) -> Tensor:
        return self.vocabulary.full(self.draft_logits(states))

    def draft_logits(self, states: Tensor) -> Tensor:
        """(..., N): over the tokens that the head can draft."""
        logits: Tensor = self._head(self.normed(states).flatten(0, -2)).unflatten(0, states.shape[:-1])
        return logits

    def normed(self, states: Tensor) -> Tensor:
        """What the head of logits reads."""
        return states if self._normed_output else self._norm(states)


class LoadableDrafter(StepDrafter):
    """A drafter whose weights can be replaced while it serves."""

    make: type[Eagle3] = Eagle3

    def __init__(self, context: DrafterContext, weights: Head) -> None:
        self.weights, self._target = weights, context.target
        super().__init__(context, self.make(weights, context.target))

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Draft with these weights from now on; the keys and values that the old ones made stay."""
        dtypes = {name: tensor.dtype for name, tensor in self.weights.tensors.items()}
        new = {name: tensor.detach().to(dtypes[name], copy=True) for name, tensor in tensors.items()}
        self.weights = replace(self.weights, tensors={**self.weights.tensors, **new})
        made, model = self.make(self.weights, self._target), self.head.model
        model.execution, made.model = made.model.execution, model  # the cache's model stays
        self.head = made


class Eagle3Drafter(LoadableDrafter):
    """Steps by the head of a folder, or by a random one."""

    def __init__(self, context: DrafterContext, *, path: str | None, untrained: bool) -> None:
        super().__init__(context, head_of("eagle3", context, path, untrained))
