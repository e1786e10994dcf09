"""LightningModules: next-token training of a language model. Shapes: B rows, T tokens, V vocabulary."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from specdec.training import TrainingError
from specdec.training.budget import Budget

# Up to this length materialized attention scores beat the fused kernel on a CPU (measured: 5.6k against 4.9k
# tokens/s at 256, 2.2k against 3.6k at 512).
EAGER_ATTENTION_UP_TO = 256


class TrainingModule(lightning.LightningModule):
    """Optimizer, schedule and checks that every stage shares; a subclass gives `loss`."""

    def __init__(self, name: str, model: LlamaForCausalLM, budget: Budget) -> None:
        super().__init__()
        self.name, self.model, self.budget = name, model, budget
        self.losses: list[float] = []
        self.num_tokens = 0

    def loss(self, batch: Any) -> Tensor:
        """Scalar training loss of one batch."""
        raise NotImplementedError

    def num_batch_tokens(self, batch: Any) -> int:
        """Tokens fed to the model in this batch."""
        return int(batch.numel())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One step; refuses a loss that is not finite, because every later step would inherit it."""
        loss = self.loss(batch)
        value = float(loss.detach())
        if not torch.isfinite(loss.detach()):
            lr = self.budget.stage.lr
            raise TrainingError(f"{self.name}: loss is {value} at step {self.global_step}; lower lr={lr:g}")
        self.losses.append(value)
        self.num_tokens += self.num_batch_tokens(batch)
        self.log("loss", value, prog_bar=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Advance the budget; the clock may end the stage before its last step."""
        self.budget.step = self.global_step
        if self.budget.fraction >= 1.0:
            self.trainer.should_stop = True

    def configure_optimizers(self) -> Any:
        """AdamW; norms are not decayed. The learning rate follows the budget."""
        stage = self.budget.stage
        matrices = [p for p in self.model.parameters() if p.requires_grad and p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.requires_grad and p.ndim == 1]
        groups = [
            {"params": matrices, "weight_decay": stage.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=stage.lr, betas=(0.9, 0.97), foreach=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: self.budget.lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the clock and the counts, so that a resumed stage has the rest of its budget."""
        checkpoint["budget"] = {"spent_s": self.budget.spent_s, "num_tokens": self.num_tokens}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the clock, the step count and the token count."""
        self.budget.earlier_s = checkpoint["budget"]["spent_s"]
        self.budget.step = checkpoint["global_step"]
        self.num_tokens = checkpoint["budget"]["num_tokens"]


class LanguageModule(TrainingModule):
    """Next-token cross-entropy on corpus blocks input_ids_BT."""

    def loss(self, batch: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token."""
        self.model.set_attn_implementation("eager" if batch.shape[1] <= EAGER_ATTENTION_UP_TO else "sdpa")
        return next_token_loss(self.model, batch)


def next_token_loss(model: LlamaForCausalLM, input_ids_BT: Tensor) -> Tensor:
    """Cross-entropy of token t + 1 given tokens up to t, mean in nats."""
    logits_BTV = model(input_ids=input_ids_BT, use_cache=False).logits[:, :-1].float()
    return functional.cross_entropy(logits_BTV.flatten(0, 1), input_ids_BT[:, 1:].flatten())


@torch.inference_mode()
def evaluate_loss(model: LlamaForCausalLM, blocks_BT: Tensor, batch: int = 8) -> float:
    """Mean held-out cross-entropy in nats per token."""
    model.eval().set_attn_implementation("sdpa")
    losses = [float(next_token_loss(model, rows)) for rows in blocks_BT.split(batch)]
    return sum(losses) / len(losses)
