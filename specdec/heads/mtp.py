"""Multi-token prediction: a decoder layer that was trained with its target, over (token embedding, last hidden state).

Both are normed and projected to the layer's input; the layer's output, after a norm of its own, goes to the target's
head and into the next step. Folders of `speculators`, and the layer inside a MiMo checkpoint, whose projection takes
the hidden state first; for other checkpoints, `specdec.heads.target_mtp`.
Source: DeepSeek-V3, arXiv 2412.19437, section 2.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.config.drafter_weights import check_trained_weights
from specdec.core.outputs import NORMED
from specdec.drafters.base import Drafter
from specdec.drafters.context import DrafterContext
from specdec.heads.folder import open_folder
from specdec.heads.layers import (
    HeadExecution,
    HeadModel,
    embeddings,
    layer_module,
    norm,
    product,
    projected,
    rotary,
    target_logits,
)
from specdec.heads.mtp_layers import MtpLayersDrafter
from specdec.heads.spec import IN_TARGET, ORIGINAL, recognised
from specdec.heads.steps import StepDrafter, Stepping
from specdec.heads.target_mtp import TargetMtp, mtp_of
from specdec.heads.weights import Head, head_of
from specdec.models.causal_lm import CausalLM
from specdec.models.execution.fused import Layer, RMSNorm


class Mtp(Stepping):
    """The layer, which is used again for every further token."""

    hidden_layers = (NORMED,)

    def __init__(self, head: Head, target: CausalLM) -> None:
        layers = [Layer(layer_module(head, 0), 0, None)]
        finish = RMSNorm(norm(head, "layers.0.final_layernorm"))
        execution = HeadExecution(layers, rotary(head.spec, target.device), finish)
        self.model = HeadModel.of(head, target, execution, target.module.get_output_embeddings())
        self.embed, self._target = embeddings(head, target), target
        self._norm_embeds, self._norm_hidden = (
            RMSNorm(norm(head, f"layers.0.{part}_layernorm")) for part in ("token", "hidden")
        )
        self._project, self._hidden_first = product(head, "layers.0.input_proj"), head.spec.layout == ORIGINAL

    def features(self, hidden_BTH: Tensor) -> Tensor:
        return hidden_BTH

    def inputs(self, embeds_BTD: Tensor, features_BTD: Tensor) -> Tensor:
        parts = [self._norm_embeds(embeds_BTD), self._norm_hidden(features_BTD)]
        return projected(self._project, torch.cat(parts[::-1] if self._hidden_first else parts, dim=-1))

    def logits(self, states: Tensor) -> Tensor:
        return target_logits(self._target, states)


class MtpDrafter(StepDrafter):
    """Steps by the layer of a folder, or by a random one; of a target with several layers, each drafts one token."""

    def __new__(cls, context: DrafterContext, *, path: str | None, untrained: bool) -> Drafter:  # type: ignore[misc]
        check_trained_weights("mtp", path, untrained)
        target = context.target
        if path is None or recognised(open_folder(path, allow_pickle=context.allow_pickle)).layout != IN_TARGET:
            return StepDrafter(context, Mtp(head_of("mtp", context, path, untrained), target))
        mtp = mtp_of(target, path)
        if len(mtp.layers) == 1:
            return StepDrafter(context, TargetMtp(target, mtp))
        return MtpLayersDrafter(context, [TargetMtp(target, mtp, number) for number in range(len(mtp.layers))])
