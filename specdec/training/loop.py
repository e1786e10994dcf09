"""One training stage: a Lightning Trainer with checkpoints, a budget and a resumable end."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar, TQDMProgressBar
from torch.utils.data import DataLoader, IterableDataset

from specdec.training.config import TrainConfig
from specdec.training.module import TrainingModule


def fit(module: TrainingModule, stream: IterableDataset[Any], folder: Path, cfg: TrainConfig) -> dict[str, Any]:
    """Train until the budget ends, from `folder`/last.ckpt when there is one. Returns the stage's record."""
    stage = module.budget.stage
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=stage.steps,
        precision=cfg.precision,  # type: ignore[arg-type]
        gradient_clip_val=stage.clip,
        logger=False,
        callbacks=_callbacks(folder, cfg, stage.checkpoint_every),
        enable_progress_bar=cfg.progress,
        enable_model_summary=False,
    )
    last = folder / "last.ckpt"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")  # worker counts and log intervals: ours on purpose
        module.model.train()
        trainer.fit(module, DataLoader(stream, batch_size=None), ckpt_path=str(last) if last.exists() else None)
    return {
        "steps": module.budget.step,
        "tokens": module.num_tokens,
        "wall_s": round(module.budget.spent_s, 1),
        "train_loss": _mean(module.losses[-100:]),
        "loss_curve": _curve(module.losses),
    }


def _mean(values: list[float]) -> float:
    return round(sum(values) / max(1, len(values)), 4)


def _curve(losses: list[float], num_points: int = 40) -> list[float]:
    """Means over equal stretches of this run's steps."""
    size = -(-len(losses) // num_points) or 1
    return [_mean(losses[start : start + size]) for start in range(0, len(losses), size)]


def _callbacks(folder: Path, cfg: TrainConfig, checkpoint_every: int) -> list[Callback]:
    """Checkpointing always; a progress bar that suits the output stream."""
    checkpoint = ModelCheckpoint(
        dirpath=folder, filename="last", every_n_train_steps=checkpoint_every, enable_version_counter=False
    )
    if not cfg.progress:
        return [checkpoint]
    from rich.console import Console

    bar: Callback = RichProgressBar() if Console().is_terminal else TQDMProgressBar(refresh_rate=50)
    return [checkpoint, bar]
