"""EAGLE and EAGLE-2: one decoder layer over (token embedding, the target's last hidden state); the target's own head.

The published layer has no norm before its attention and none after it, and continues from its raw outputs. The layer of
train.py is a whole Llama of one layer, with both norms, which continues from its normed outputs.
Source: Li et al. 2024, arXiv 2401.15077 (EAGLE) and 2406.16858 (EAGLE-2); trained on its own outputs as in arXiv
2503.01840.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.config.drafter_weights import check_trained_weights
from specdec.core.outputs import NORMED
from specdec.drafters.context import DrafterContext
from specdec.drafters.eagle import EagleLayer, as_causal
from specdec.drafters.trained import loaded, read_settings
from specdec.heads.folder import open_folder
from specdec.heads.layers import (
    FirstOfEagle,
    HeadExecution,
    HeadModel,
    embeddings,
    layer_module,
    product,
    projected,
    rotary,
    target_logits,
)
from specdec.heads.spec import SPECDEC, recognised
from specdec.heads.steps import StepDrafter, Stepping
from specdec.heads.weights import Head, load_head
from specdec.models.causal_lm import CausalLM
from specdec.models.execution.fused import Layer


class PublishedEagle(Stepping):
    """The layout of its authors."""

    hidden_layers = (NORMED,)

    def __init__(self, head: Head, target: CausalLM) -> None:
        layers: list[Layer] = [FirstOfEagle(layer_module(head, 0), 0, None)]
        layers += [Layer(layer_module(head, n), n, None) for n in range(1, head.spec.num_layers)]
        execution = HeadExecution(layers, rotary(head.spec, target.device), None)
        self.model: CausalLM = HeadModel.of(head, target, execution, target.module.get_output_embeddings())
        self.embed = embeddings(head, target)
        self._target, self._project = target, product(head, "fc")

    def features(self, hidden_BTH: Tensor) -> Tensor:
        return hidden_BTH

    def inputs(self, embeds_BTD: Tensor, features_BTD: Tensor) -> Tensor:
        return projected(self._project, torch.cat([embeds_BTD, features_BTD], dim=-1))

    def logits(self, states: Tensor) -> Tensor:
        return target_logits(self._target, states)


class OwnEagle(Stepping):
    """The layer of train.py."""

    hidden_layers = (NORMED,)

    def __init__(self, layer: EagleLayer, target: CausalLM) -> None:
        self.model = as_causal(layer, target)
        self.model.execute("eager" if target.execution.name == "eager" else "auto")
        self.embed = target.module.get_input_embeddings()
        self._layer, self._target = layer, target

    def features(self, hidden_BTH: Tensor) -> Tensor:
        return hidden_BTH

    def inputs(self, embeds_BTD: Tensor, features_BTD: Tensor) -> Tensor:
        return self._layer.inputs(embeds_BTD, features_BTD)

    def logits(self, states: Tensor) -> Tensor:
        return target_logits(self._target, states)


class EagleDrafter(StepDrafter):
    """Either of the two, by what the folder holds."""

    def __init__(self, context: DrafterContext, *, path: str | None, untrained: bool) -> None:
        check_trained_weights("eagle", path, untrained)
        target = context.target
        if path is not None and recognised(open_folder(path, allow_pickle=context.allow_pickle)).layout != SPECDEC:
            super().__init__(context, PublishedEagle(load_head("eagle", path, context), target))
            return
        read_settings("eagle", path, untrained, target)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layer = EagleLayer(target.module)
        super().__init__(context, OwnEagle(loaded(layer, path, target), target))
