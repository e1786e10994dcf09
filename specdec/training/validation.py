"""Validation by acceptance: every few hundred steps the engine decodes held-out prompts; the best weights are kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from specdec.training.checkpoints import BEST
from specdec.training.config import ValidationConfig
from specdec.training.module import TrainingModule

Measure = Callable[[Any], dict[str, Any]]
"""From a trained model to its figures; ``acceptance_rate`` (or ``score``, higher is better) decides."""


class Validation(Callback):
    """Measures, logs to validation.jsonl, writes best.ckpt, and stops when it gets no better."""

    def __init__(self, folder: Path, cfg: ValidationConfig, measure: Measure) -> None:
        self.folder, self.cfg, self.measure = folder, cfg, measure
        self.best, self.num_worse, self._measured = -math.inf, 0, -1

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs."""
        return {"best": self.best, "num_worse": self.num_worse, "measured": self._measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from it."""
        self.best, self.num_worse = state_dict["best"], state_dict["num_worse"]
        self._measured = state_dict["measured"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop lines behind the step that training goes on from."""
        if not trainer.is_global_zero:
            return
        path = self.folder / "validation.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= trainer.global_step]
        path.write_text("".join(line + "\n" for line in kept))
        if trainer.global_step == 0:
            (self.folder / BEST).unlink(missing_ok=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Measure behind every n-th optimizer step."""
        if self.cfg.every and trainer.global_step % self.cfg.every == 0:
            self._measure(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure where the stage ends."""
        self._measure(trainer, pl_module)

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step in (0, self._measured):
            return
        assert isinstance(pl_module, TrainingModule)
        pl_module.check_finite()
        self._measured = trainer.global_step
        model = pl_module.result
        modes = [(part, part.training) for part in model.modules()]
        model.eval()
        figures = self.measure(model)
        for part, training in modes:
            part.training = training
        line = {"step": trainer.global_step, **figures}
        if trainer.is_global_zero:
            with (self.folder / "validation.jsonl").open("a") as stream:
                stream.write(json.dumps(line) + "\n")
        told = {key: value for key, value in figures.items() if isinstance(value, float)}
        if trainer.is_global_zero:
            print(f"[{pl_module.name}] step {trainer.global_step}: {_told(told)}", flush=True)
        if trainer.logger is not None:
            trainer.logger.log_metrics({f"validation/{key}": value for key, value in told.items()}, trainer.global_step)
        self._judge(trainer, figures)

    def _judge(self, trainer: Trainer, figures: dict[str, Any]) -> None:
        score = figures["score"] if "score" in figures else figures["acceptance_rate"] or 0.0
        if score > self.best:
            self.best, self.num_worse = score, 0
            trainer.save_checkpoint(self.folder / BEST)
        else:
            self.num_worse += 1
            if self.cfg.patience is not None and self.num_worse >= self.cfg.patience:
                print(f"stopped early: {self.num_worse} measurements without a better one", flush=True)
                trainer.should_stop = True


def _told(figures: dict[str, float]) -> str:
    names = ("acceptance_rate", "mean_acceptance_length", "predicted_speedup", "heldout_loss")
    return ", ".join(f"{name.replace('_', ' ')} {figures[name]:.3f}" for name in names if name in figures)
