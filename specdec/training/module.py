"""The LightningModule of every fit: one model, one objective, one stream; all that a resume needs is in its checkpoint.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from specdec.training import TrainingError
from specdec.training.blocks import Batch, Stream
from specdec.training.budget import Budget

Objective = Callable[[Any, Batch, int], Tensor]
"""(model, batch, optimizer steps done) -> scalar loss; draws random numbers from seed and step alone."""


class TrainingModule(lightning.LightningModule):
    """Optimizer, schedule, average of the weights, and checks that the weights stay finite."""

    def __init__(self, name: str, model: nn.Module, objective: Objective, stream: Stream, budget: Budget) -> None:
        super().__init__()
        self.name, self.model, self.objective, self.stream, self.budget = name, model, objective, stream, budget
        decay = budget.stage.ema
        self.ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None
        if self.ema is not None:
            self.ema.requires_grad_(False)
        self.losses: list[float] = []  # one per optimizer step
        self.grad_norm = math.nan
        self.num_tokens = 0
        self._parts: list[float] = []  # losses of the batches since the last optimizer step
        self._place = dict(stream.place)  # behind the last batch that was learned
        self._random_state: Tensor | None = None

    @property
    def result(self) -> Any:
        """The model to measure and to export: the average of the weights, where one is kept."""
        return self.model if self.ema is None else self.ema.module

    def train_dataloader(self) -> Any:
        """The stream from its place on; each device takes its share of the rows."""
        world = self.trainer.world_size
        self.stream.num_devices = world
        self.stream.share = slice(self.trainer.global_rank, None, world)
        return DataLoader(self.stream, batch_size=None)

    def on_train_start(self) -> None:
        """Go on with the random numbers of the run that was interrupted."""
        if self._random_state is not None:
            torch.set_rng_state(self._random_state)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One batch; refuses a loss that is not finite, because every later step would inherit it."""
        loss = self.objective(self.model, batch, self.global_step)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._failure(f"loss is {value}", batch.place)
        self._parts.append(value)
        self._place = batch.place
        self.num_tokens += batch.ids_BT.numel() * self.trainer.world_size
        return loss

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clip by the norm of all gradients; refuse to step with one that is not finite."""
        norm = nn.utils.clip_grad_norm_(self.trained_parameters(), self.budget.stage.clip or math.inf)
        self.grad_norm = float(norm)
        if not math.isfinite(self.grad_norm) and str(self.trainer.precision) != "16-mixed":
            raise self._failure(f"the gradient's norm is {self.grad_norm}", self._place)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and move the average of the weights; in here, so that it is done before a checkpoint is written."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        self.losses.append(sum(self._parts) / max(1, len(self._parts)))
        self._parts.clear()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Advance the budget; the clock may end the stage before its last step."""
        self.budget.step = self.global_step
        if self.budget.fraction >= 1.0:
            self.trainer.should_stop = True

    def trained_parameters(self) -> list[nn.Parameter]:
        """What the optimizer changes."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def configure_optimizers(self) -> Any:
        """AdamW; norms and other vectors are not decayed. The learning rate follows the budget."""
        stage, trained = self.budget.stage, self.trained_parameters()
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": stage.weight_decay},
            {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        optimizer = torch.optim.AdamW(groups, lr=stage.lr, betas=(0.9, 0.97), foreach=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.budget.lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def check_finite(self) -> None:
        """Refuse weights that hold NaN or infinity, before they overwrite a good checkpoint."""
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.trained_parameters()):
            raise self._failure("a weight is not finite", self._place)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep clock, counts, loss curve, the stream's place and the random state."""
        checkpoint["specdec"] = {
            "spent_s": self.budget.spent_s,
            "num_tokens": self.num_tokens,
            "losses": self.losses,
            "place": self._place,
            "random_state": torch.get_rng_state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from all of that."""
        kept = checkpoint["specdec"]
        self.budget.earlier_s, self.budget.step = kept["spent_s"], checkpoint["global_step"]
        self.num_tokens, self.losses = kept["num_tokens"], list(kept["losses"])
        self.stream.place = self._place = dict(kept["place"])
        self._random_state = kept["random_state"]

    def _failure(self, what: str, place: dict[str, int]) -> TrainingError:
        where = ", ".join(f"{key} {count}" for key, count in place.items())
        return TrainingError(
            f"{self.name}: {what} at step {self.global_step} (data up to {where}); lower lr={self.budget.stage.lr:g}, "
            "or look at that batch; the last good checkpoint is kept"
        )
