"""Validation by acceptance: every few hundred steps the engine decodes held-out prompts; the best weights are kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from specdec.core.files import append_line, read_lines, write_lines
from specdec.training.checkpoints import BEST
from specdec.training.config import ValidationConfig
from specdec.training.module import TrainingModule

Measure = Callable[[Any], dict[str, Any]]
"""From a trained model to its figures; ``acceptance_rate`` (or ``score``, higher is better) decides which is best."""

PRINTED = ("acceptance_rate", "mean_acceptance_length", "predicted_speedup", "heldout_loss")


class Validation(Callback):
    """Measures, logs to validation.jsonl, writes best.ckpt, and stops the fit when it no longer improves.

    Args:
        by_all: of several processes all measure, because each has a part of the target; the first one's figures count.
    """

    def __init__(self, folder: Path, cfg: ValidationConfig, measure: Measure, *, by_all: bool = False) -> None:
        self.lines, self.best_path = folder / "validation.jsonl", folder / BEST
        self.cfg, self.measure, self.by_all = cfg, measure, by_all
        self.best, self.num_worse, self._measured = -math.inf, 0, -1

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "num_worse": self.num_worse, "measured": self._measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.num_worse = state_dict["best"], state_dict["num_worse"]
        self._measured = state_dict["measured"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the lines after the step that training resumes from."""
        if trainer.is_global_zero:
            write_lines(self.lines, [line for line in read_lines(self.lines) if line["step"] <= trainer.global_step])
            if trainer.global_step == 0:
                self.best_path.unlink(missing_ok=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if self.cfg.every and trainer.global_step % self.cfg.every == 0:
            self._measure_once(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._measure_once(trainer, pl_module)

    def _measure_once(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, unless this step is measured already."""
        if trainer.global_step in (0, self._measured):
            return
        assert isinstance(pl_module, TrainingModule)
        pl_module.check_finite()
        self._measured = trainer.global_step
        result = pl_module.whole_result()
        figures = self._figures(result) if trainer.is_global_zero or self.by_all else {}
        figures = trainer.strategy.broadcast(figures)  # all devices must agree on which is best, and when to stop
        shown = {key: value for key, value in figures.items() if isinstance(value, float)}
        if trainer.is_global_zero:
            append_line(self.lines, {"step": trainer.global_step, **figures})
            text = ", ".join(f"{name.replace('_', ' ')} {shown[name]:.3f}" for name in PRINTED if name in shown)
            print(f"[{pl_module.name}] step {trainer.global_step}: {text}", flush=True)
        if trainer.logger is not None:
            metrics = {f"validation/{key}": value for key, value in shown.items()}
            trainer.logger.log_metrics(metrics, trainer.global_step)
        self._keep_best(trainer, figures)

    def _figures(self, model: Any) -> dict[str, Any]:
        """Measure in evaluation mode, and restore the mode of every part."""
        modes = [(part, part.training) for part in model.modules()]
        model.eval()
        figures = self.measure(model)
        for part, training in modes:
            part.training = training
        return figures

    def _keep_best(self, trainer: Trainer, figures: dict[str, Any]) -> None:
        score = figures["score"] if "score" in figures else figures["acceptance_rate"] or 0.0
        if score > self.best:
            self.best, self.num_worse = score, 0
            trainer.save_checkpoint(self.best_path)
            return
        self.num_worse += 1
        if self.cfg.patience is not None and self.num_worse >= self.cfg.patience:
            if trainer.is_global_zero:
                print(f"stopped early: {self.num_worse} measurements without a better one", flush=True)
            trainer.should_stop = True
