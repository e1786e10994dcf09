"""What a fit reports while it runs: metrics.csv, a line or a bar with tokens/s and time left, Weights & Biases."""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from specdec.training.budget import Budget
from specdec.training.module import TrainingModule

COLUMNS = ("step", "loss", "lr", "grad_norm", "tokens", "tokens_per_s", "spent_s")
LINE_EVERY_S = 30.0


class Curve(Callback):
    """Appends to metrics.csv. Lines behind the checkpoint that a run resumes from are dropped: they come again."""

    def __init__(self, folder: Path, every: int) -> None:
        self.path, self.every, self._written = folder / "metrics.csv", every, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cut the file back to the step that training goes on from."""
        self._written = trainer.global_step
        if not trainer.is_global_zero:
            return
        kept = []
        if self._written and self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as stream:
                kept = [
                    line for line in csv.DictReader(stream) if line["spent_s"] and int(line["step"]) <= self._written
                ]
        with self.path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Write a line behind every n-th optimizer step."""
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


class Pace(Callback):
    """A bar where stderr is a terminal, otherwise a line every half minute."""

    def __init__(self, name: str, budget: Budget) -> None:
        self.name, self.budget = name, budget
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[pace]}"),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
            transient=True,
        )
        self._task = self._bar.add_task(name, total=1.0, pace="")
        self._begun_s = self._told_s = time.monotonic()
        self._begun_tokens, self._begun_fraction = 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here: what was done before a resume tells nothing of the pace now."""
        assert isinstance(pl_module, TrainingModule)
        self._begun_s = self._told_s = time.monotonic()
        self._begun_tokens, self._begun_fraction = pl_module.num_tokens, self.budget.fraction
        self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Say how far, how fast, how long still."""
        assert isinstance(pl_module, TrainingModule)
        now = time.monotonic()
        passed_s, done = now - self._begun_s, self.budget.fraction - self._begun_fraction
        left = f"{passed_s * (1 - self.budget.fraction) / done / 60:.1f} min left" if done > 0 else ""
        speed = f"{(pl_module.num_tokens - self._begun_tokens) / max(passed_s, 1e-9):,.0f} tokens/s"
        loss = f"loss {pl_module.losses[-1]:.4f}" if pl_module.losses else ""
        pace = f"step {trainer.global_step}/{self.budget.stage.steps}  {loss}  {speed}  {left}"
        self._bar.update(self._task, completed=self.budget.fraction, pace=pace)
        if self._bar.disable and now - self._told_s > LINE_EVERY_S:
            self._told_s = now
            print(f"[{self.name}] {pace}", flush=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the terminal back."""
        self._bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Also where the fit fails."""
        self._bar.stop()
