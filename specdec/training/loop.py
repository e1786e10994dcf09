"""One fit: a Lightning Trainer with a budget, measured acceptance, and checkpoints from which it resumes exactly."""

from __future__ import annotations

import json
import logging
import signal
import sys
import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
from lightning.pytorch.callbacks import Callback

from specdec.core.files import write_json
from specdec.training import TrainingError
from specdec.training.checkpoints import (
    BEST,
    LAST,
    AtomicCheckpointIO,
    LastCheckpoint,
    check_resumable,
    read_checkpoint,
)
from specdec.training.config import TrainConfig
from specdec.training.device import lightning_accelerator, precision_of
from specdec.training.export import settings_record
from specdec.training.metrics_file import MetricsFile
from specdec.training.module import TrainingModule
from specdec.training.progress import FitProgress
from specdec.training.recompute import enable_in
from specdec.training.sharding import SHARDED, strategy_of
from specdec.training.stages import is_first_process

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
    if cfg.progress and is_first_process():
        callbacks.append(FitProgress(module.name))
    last = folder / LAST
    if last.exists():
        check_resumable(module, last)
    if cfg.gradient_checkpointing:
        module.recomputes = True
        enable_in(module.model)
    logger = _wandb(module.name, folder, cfg)
    trainer = lightning.Trainer(
        accelerator=lightning_accelerator(cfg),
        devices=cfg.device.devices,
        strategy=strategy_of(cfg),
        num_nodes=cfg.device.num_nodes,
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
        except SystemExit as end:
            if trainer.interrupted:  # Lightning ends the process without a word, and leaves SIGINT ignored
                signal.signal(signal.SIGINT, signal.default_int_handler)
                raise KeyboardInterrupt from end
            raise
        finally:
            if logger is not None and trainer.is_global_zero:
                logger.experiment.finish()
    if not trainer.is_global_zero and not cfg.device.tensor_parallel:
        sys.exit(0)  # only the first device's process measures and exports; of a split target all measure
    if cfg.device.strategy == SHARDED:
        module.unshard(read_checkpoint(last)["state_dict"])
    return {
        "precision": str(trainer.precision),
        "steps": module.budget.step,
        "tokens": module.num_tokens,
        "wall_s": round(module.budget.spent_s, 1),
        "train_loss": _mean(module.losses[-100:]),
        "loss_curve": _loss_curve(module.losses),
    }


def take_best(module: TrainingModule, folder: Path) -> int | None:
    """Load the weights with the best measured acceptance; returns their step, or None if nothing was measured."""
    if not (folder / BEST).exists():
        return None
    content = read_checkpoint(folder / BEST)
    module.load_state_dict(content["state_dict"])
    return int(content["global_step"])


def _wandb(name: str, folder: Path, cfg: TrainConfig) -> Any:
    """A Weights & Biases logger if the config asks for one; a resumed fit continues its run."""
    if cfg.log.wandb == "disabled" or not is_first_process():
        return None
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    note = folder / "wandb.json"
    if not note.exists():
        write_json(note, {"id": uuid.uuid4().hex[:12]})
    logger = WandbLogger(
        name=name,
        id=json.loads(note.read_text())["id"],
        project=cfg.log.project,
        save_dir=str(folder),
        # Not Lightning's offline=True: that sets WANDB_MODE, which W&B ignores once anything in the process used it.
        mode=cfg.log.wandb,
        resume="allow",
    )
    try:
        logger.log_hyperparams(settings_record(cfg))
    except wandb.errors.Error as error:
        reason = str(error).partition("\n")[0]
        raise TrainingError(f"log.wandb={cfg.log.wandb}: {reason}; set WANDB_API_KEY, or log.wandb=offline") from error
    return logger


def _mean(values: list[float]) -> float:
    return round(sum(values) / max(1, len(values)), 4)


def _loss_curve(losses: list[float], num_points: int = 40) -> list[float]:
    """Means over equal numbers of steps."""
    size = -(-len(losses) // num_points) or 1
    return [_mean(losses[start : start + size]) for start in range(0, len(losses), size)]
