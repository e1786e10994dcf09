"""The LightningModule of every fit: one model, one objective, one stream. Its checkpoint holds all that a resume needs.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from specdec.models.tensor_parallel import whole
from specdec.training import TrainingError
from specdec.training.blocks import Batch, Stream
from specdec.training.losses import LossSum
from specdec.training.recompute import recomputing
from specdec.training.sharding import all_finite, shard, whole_weights

Objective = Callable[[Any, Batch, int], LossSum]
"""(model, batch, optimizer steps done) -> loss; its random numbers follow from seed and step alone."""


class TrainingModule(lightning.LightningModule):
    """Optimizer, schedule, average of the weights, and checks that loss, gradient and weights stay finite."""

    def __init__(self, name: str, model: nn.Module, objective: Objective, stream: Stream) -> None:
        super().__init__()
        self.name, self.model, self.objective = name, model, objective
        self.stream, self.budget = stream, stream.budget
        decay = self.budget.stage.ema
        self.ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None
        if self.ema is not None:
            self.ema.requires_grad_(False)
        self.losses: list[float] = []  # one per optimizer step
        self.grad_norm = self._step_loss = math.nan
        self.num_tokens = 0
        self._whole: list[Any] | None = None  # if the weights are sharded
        self.recomputes = False  # layers and losses, in the backward pass
        phase = self.budget.stage.phases[0]
        self._scale = phase.block * phase.batch  # keeps gradients of sums in the range of means
        self._sums: Tensor | None = None  # since the last optimizer step: loss, positions, tokens read
        self._place = dict(stream.place)  # after the last batch that was learned
        self._random_state: Tensor | None = None

    @property
    def result(self) -> Any:
        """The model to measure and to export: the average of the weights if one is kept."""
        return self.model if self.ema is None else self.ema.module

    def configure_model(self) -> None:
        """Shard the weights if the strategy does; the first process keeps a whole copy, in which they are measured."""
        if self.device_mesh is not None and self._whole is None:
            self._whole = [copy.deepcopy(self.model) if self.trainer.is_global_zero else None]  # no part of the module
            shard(self.model, self.device_mesh["data_parallel"])

    def whole_result(self) -> Any:
        """The result with all its weights, on the first process; every process must ask for it."""
        if self._whole is None:
            return self.result
        weights = whole_weights(self.model)
        if self._whole[0] is not None:
            self._whole[0].load_state_dict(weights)
            self._whole[0].to(self.device)
        return self._whole[0]

    def unshard(self, weights: dict[str, Any]) -> None:
        """After the fit: go on with the whole model and the weights of a checkpoint."""
        if self._whole is not None:
            self.model = self._whole[0]
            self.load_state_dict(weights)

    def train_dataloader(self) -> Any:
        world = self.trainer.world_size
        self.stream.num_devices = world
        self.stream.share = slice(self.trainer.global_rank, None, world)
        return DataLoader(self.stream, batch_size=None)

    def on_train_start(self) -> None:
        """Start the clock; restore the random state of the run that was interrupted."""
        self.budget.start()
        if self._random_state is not None:
            torch.set_rng_state(self._random_state)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        with recomputing(self.recomputes):
            loss = self.objective(self.model, batch, self.global_step)
        sums = [loss.total.detach(), loss.num_positions, batch.ids_BT.numel()]
        sums_3 = torch.stack([torch.as_tensor(x, dtype=torch.float64, device=loss.total.device) for x in sums])
        self._sums = sums_3 if self._sums is None else self._sums + sums_3
        self._place = batch.place
        return loss.total / self._scale

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Divide the gradients by the positions of all batches and devices, and clip them by the norm of all.

        Raises:
            TrainingError: the loss or the norm is not finite; on all devices, for they share both.
        """
        num_positions = self._share_sums()
        shares = self.trainer.accumulate_grad_batches * self.trainer.world_size  # Lightning has divided by both
        gradients = [weight.grad for weight in self.trained_parameters() if weight.grad is not None]
        torch._foreach_mul_(gradients, self._scale * shares / num_positions)
        norm = nn.utils.clip_grad_norm_(self.trained_parameters(), self.budget.stage.clip or math.inf)
        self.grad_norm = float(whole(norm))
        if not math.isfinite(self.grad_norm) and str(self.trainer.precision) != "16-mixed":
            raise self._failure(f"the gradient's norm is {self.grad_norm}", self._place)

    def _share_sums(self) -> float:
        """Add up the step's sums and the first process's time over all devices; returns the number of positions."""
        assert self._sums is not None
        spent_s = self.budget.spent_s if self.trainer.is_global_zero else 0.0
        own_4 = torch.cat([self._sums, self._sums.new_tensor([spent_s])])
        shared_4: Any = self.trainer.strategy.reduce(own_4, reduce_op="sum")
        total, num_positions, num_tokens, self.budget.clock_s = shared_4.tolist()
        self._sums, num_positions = None, max(1.0, num_positions)
        if not math.isfinite(total):
            raise self._failure(f"loss is {total}", self._place)
        self._step_loss = total / num_positions
        self.num_tokens += int(num_tokens)
        return float(num_positions)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step and update the average of the weights here, before any callback can write a checkpoint."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        self.losses.append(self._step_loss)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Advance the budget; the clock may end the stage before its last step."""
        self.budget.step = self.global_step
        if self.budget.fraction >= 1.0:
            self.trainer.should_stop = True

    def trained_parameters(self) -> list[nn.Parameter]:
        """What the optimizer changes."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def configure_optimizers(self) -> Any:
        """AdamW, without decay of vectors such as norms. The learning rate follows the budget."""
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
        """Raise TrainingError if a weight is NaN or infinite."""
        if not all_finite([*self.trained_parameters()]):
            raise self._failure("a weight is not finite", self._place)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add clock, counts, losses, the stream's place and the random state; weights must be finite to be saved."""
        self.check_finite()
        checkpoint["specdec"] = {
            "spent_s": self.budget.spent_s,
            "num_tokens": self.num_tokens,
            "losses": self.losses,
            "place": self._place,
            "random_state": torch.get_rng_state(),
            "num_devices": self.trainer.world_size,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore them.

        Raises:
            TrainingError: on another number of devices a step has other rows, and batches have another order.
        """
        kept, now = checkpoint["specdec"], self.trainer.world_size
        if (before := kept.get("num_devices", now)) != now:
            raise TrainingError(
                f"device.devices: the fit ran on {before} devices, now there are {now}: a step would have other rows, "
                f"and batches another order; go on with {before}, or set force=true"
            )
        self.budget.earlier_s = self.budget.clock_s = kept["spent_s"]
        self.budget.step = checkpoint["global_step"]
        self.num_tokens, self.losses = kept["num_tokens"], list(kept["losses"])
        self.stream.place = self._place = dict(kept["place"])
        self._random_state = kept["random_state"]

    def _failure(self, what: str, place: dict[str, int]) -> TrainingError:
        where = ", ".join(f"{key} {count}" for key, count in place.items())
        return TrainingError(
            f"{self.name}: {what} at step {self.global_step} (data up to {where}); lower lr={self.budget.stage.lr:g}, "
            "or look at that batch; the last good checkpoint is kept"
        )
