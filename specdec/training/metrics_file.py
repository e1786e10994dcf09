"""metrics.csv: the figures of a fit, a line every few optimizer steps.

Lightning's CSVLogger deletes the file when a run is resumed, and with it the lines before the checkpoint.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from specdec.training.module import TrainingModule

COLUMNS = ("step", "loss", "lr", "grad_norm", "tokens", "tokens_per_s", "spent_s")


class MetricsFile(Callback):
    """Appends to metrics.csv; a resumed run first drops the lines after its checkpoint, which it will write again."""

    def __init__(self, folder: Path, every: int) -> None:
        self.path, self.every, self._written = folder / "metrics.csv", every, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._written = trainer.global_step
        if not trainer.is_global_zero:
            return
        lines: list[dict[str, Any]] = []
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as stream:
                lines = [line for line in csv.DictReader(stream) if line["spent_s"]]  # a torn line lacks its end
        with self.path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(line for line in lines if int(line["step"]) <= trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, TrainingModule)
        step = trainer.global_step
        if step == self._written or step % self.every or not trainer.is_global_zero:
            return
        self._written = step
        spent_s = pl_module.budget.spent_s
        line: dict[str, Any] = {
            "step": step,
            "loss": repr(pl_module.losses[-1]),
            "lr": repr(trainer.optimizers[0].param_groups[0]["lr"]),
            "grad_norm": repr(pl_module.grad_norm),
            "tokens": pl_module.num_tokens,
            "tokens_per_s": round(pl_module.num_tokens / max(spent_s, 1e-9), 1),
            "spent_s": round(spent_s, 3),
        }
        with self.path.open("a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, COLUMNS).writerow(line)
        if trainer.logger is not None:
            trainer.logger.log_metrics({key: float(value) for key, value in line.items() if key != "step"}, step)
