"""One fit: a Lightning Trainer with a budget, measured acceptance, and checkpoints from which it resumes exactly."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from specdec.training.checkpoints import (
    BEST,
    LAST,
    AtomicCheckpointIO,
    LastCheckpoint,
    check_resumable,
    read_checkpoint,
)
from specdec.training.config import TrainConfig
from specdec.training.metrics_file import MetricsFile
from specdec.training.module import TrainingModule
from specdec.training.progress import FitProgress

if TYPE_CHECKING:
    from specdec.training.validation import Validation


def fit(module: TrainingModule, folder: Path, cfg: TrainConfig, validation: Validation | None = None) -> dict[str, Any]:
    """Train until the budget ends, from `folder`/last.ckpt if it exists. Returns the stage's record."""
    stage = module.budget.stage
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    callbacks: list[Callback] = [MetricsFile(folder, cfg.log.every), LastCheckpoint(folder, stage.checkpoint_every)]
    if validation is not None:
        callbacks.insert(0, validation)  # first, so that a checkpoint includes what was measured at its step
    if cfg.progress:
        callbacks.append(FitProgress(module.name))
    last = folder / LAST
    if last.exists():
        check_resumable(module, last)
    logger = _wandb(module.name, folder, cfg)
    trainer = lightning.Trainer(
        accelerator=cfg.device.accelerator,
        devices=cfg.device.devices,
        strategy=cfg.device.strategy,
        max_steps=stage.steps,
        max_epochs=-1,
        precision=precision_of(cfg),  # type: ignore[arg-type]
        accumulate_grad_batches=stage.accumulate,
        gradient_clip_val=stage.clip or None,
        logger=logger or False,
        plugins=[AtomicCheckpointIO()],
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")  # about numbers of workers and log intervals
        module.model.train()
        try:
            trainer.fit(module, ckpt_path=str(last) if last.exists() else None, weights_only=True)
        finally:
            if logger is not None and trainer.is_global_zero:
                logger.experiment.finish()
    if not trainer.is_global_zero:
        sys.exit(0)  # only the first device's process measures and exports
    return {
        "precision": str(trainer.precision),
        "steps": module.budget.step,
        "tokens": module.num_tokens,
        "wall_s": round(module.budget.spent_s, 1),
        "train_loss": _mean(module.losses[-100:]),
        "loss_curve": _loss_curve(module.losses),
    }


def precision_of(cfg: TrainConfig) -> str:
    """Lightning's name of the precision; ``auto`` is bfloat16 only where the device has instructions for it.

    Without them bfloat16 is emulated: 9 instead of 55 GFLOP/s in matrix products on a core with AVX2.
    """
    if cfg.precision != "auto":
        return cfg.precision
    if cfg.device.accelerator != "cpu" and torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return "bf16-mixed" if native else "32-true"


def take_best(module: TrainingModule, folder: Path) -> int | None:
    """Load the weights with the best measured acceptance; returns their step, or None if nothing was measured."""
    if not (folder / BEST).exists():
        return None
    content = read_checkpoint(folder / BEST)
    module.load_state_dict(content["state_dict"])
    return int(content["global_step"])


def _wandb(name: str, folder: Path, cfg: TrainConfig) -> Any:
    """A Weights & Biases logger if the config asks for one; a resumed fit continues its run."""
    if cfg.log.wandb == "disabled":
        return None
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(
        name=name, project=cfg.log.project, save_dir=str(folder), offline=cfg.log.wandb == "offline", resume="allow"
    )


def _mean(values: list[float]) -> float:
    return round(sum(values) / max(1, len(values)), 4)


def _loss_curve(losses: list[float], num_points: int = 40) -> list[float]:
    """Means over equal numbers of steps."""
    size = -(-len(losses) // num_points) or 1
    return [_mean(losses[start : start + size]) for start in range(0, len(losses), size)]
