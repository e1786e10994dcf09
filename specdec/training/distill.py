"""Distillation of the draft. Shapes: B rows, T tokens, N output tokens, K kept, V vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import IterableDataset
from transformers import LlamaForCausalLM

from specdec.training import TrainingError
from specdec.training.budget import Budget
from specdec.training.greedy import GreedyBatch, load_batch
from specdec.training.module import EAGER_ATTENTION_UP_TO, TrainingModule


def start_from_target(draft: LlamaForCausalLM, target: LlamaForCausalLM) -> bool:
    """Copy embedding, final norm and evenly spaced layers (first to last) where the widths match."""
    same = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size")
    if any(getattr(draft.config, name) != getattr(target.config, name) for name in same):
        return False
    draft.model.embed_tokens.load_state_dict(target.model.embed_tokens.state_dict())
    draft.model.norm.load_state_dict(target.model.norm.state_dict())
    chosen = np.linspace(0, len(target.model.layers) - 1, len(draft.model.layers)).round().astype(int)
    for layer, index in zip(draft.model.layers, chosen, strict=True):
        layer.load_state_dict(target.model.layers[int(index)].state_dict())
    return True


class WarmDistillModule(TrainingModule):
    """Corpus blocks input_ids_BT: the draft learns the target's distribution and its greedy choice."""

    def __init__(
        self, name: str, model: LlamaForCausalLM, budget: Budget, target: LlamaForCausalLM, soft_weight: float
    ) -> None:
        super().__init__(name, model, budget)
        self.soft_weight = soft_weight
        self._target = (target.eval(),)  # in a tuple, so that Lightning neither trains nor checkpoints it

    def loss(self, batch: Tensor) -> Tensor:
        """(1 - w) * cross-entropy on argmax p + w * cross-entropy against p, p the target's distribution."""
        attention = "eager" if batch.shape[1] <= EAGER_ATTENTION_UP_TO else "sdpa"
        for model in (self.model, self._target[0]):
            model.set_attn_implementation(attention)
        with torch.no_grad():
            target_BTV = self._target[0](input_ids=batch, use_cache=False).logits.float()
        logits_BTV = self.model(input_ids=batch, use_cache=False).logits.float()
        hard = functional.cross_entropy(logits_BTV.flatten(0, 1), target_BTV.argmax(-1).flatten())
        soft = functional.cross_entropy(logits_BTV.flatten(0, 1), target_BTV.softmax(-1).flatten(0, 1))
        return (1.0 - self.soft_weight) * hard + self.soft_weight * soft


class GreedyDistillModule(TrainingModule):
    """Cached greedy outputs: the same two terms, with p known at its K largest entries."""

    def __init__(self, name: str, model: LlamaForCausalLM, budget: Budget, soft_weight: float) -> None:
        super().__init__(name, model, budget)
        self.soft_weight = soft_weight

    def num_batch_tokens(self, batch: GreedyBatch) -> int:
        """Prompt and output tokens."""
        return batch.ids.numel()

    def loss(self, batch: GreedyBatch) -> Tensor:
        """Mean over the outputs' valid positions; the tail of p outside its K largest entries is left out."""
        self.model.set_attn_implementation("sdpa")
        logp_BNV = output_logits(self.model, batch).log_softmax(-1)
        hard_BN = -logp_BNV.gather(-1, batch.top_ids[..., :1]).squeeze(-1)
        soft_BN = -(batch.top_logps.exp() * logp_BNV.gather(-1, batch.top_ids)).sum(-1)
        loss_BN = (1.0 - self.soft_weight) * hard_BN + self.soft_weight * soft_BN
        mask_BN = batch.valid_mask
        return (loss_BN * mask_BN).sum() / mask_BN.sum()


def output_logits(model: LlamaForCausalLM, batch: GreedyBatch) -> Tensor:
    """The model's logits_BNV for each output token given the true prefix."""
    hidden_BTH = model.model(input_ids=batch.ids[:, :-1], use_cache=False).last_hidden_state
    logits_BNV: Tensor = model.lm_head(hidden_BTH[:, batch.num_prompt_tokens - 1 :]).float()
    return logits_BNV


class GreedyStream(IterableDataset[GreedyBatch]):
    """Endless minibatches from the cached batches, shuffled anew in each pass."""

    def __init__(self, folder: Path, budget: Budget, seed: int) -> None:
        self.paths, self.budget, self.seed = sorted(folder.glob("batch_????.npz")), budget, seed
        if not self.paths:
            raise TrainingError(f"{folder} holds no greedy outputs; raise greedy.minutes or greedy.num_batches")

    def __iter__(self) -> Iterator[GreedyBatch]:
        batches = [load_batch(path) for path in self.paths]
        random = np.random.default_rng([self.seed, self.budget.step])
        while True:
            for batch, index in self._pass(batches, random):
                yield batch.rows(index)

    def _pass(self, batches: list[GreedyBatch], random: np.random.Generator) -> list[tuple[GreedyBatch, Tensor]]:
        """Every row of every cached batch once, in minibatches of one prompt length."""
        size = self.budget.stage.phases[0].batch
        parts: list[tuple[GreedyBatch, Tensor]] = []
        for batch in batches:
            order = torch.from_numpy(random.permutation(len(batch.ids)))
            parts += [(batch, rows) for rows in order.split(size)]
        shuffled: list[Any] = [parts[index] for index in random.permutation(len(parts))]
        return shuffled
