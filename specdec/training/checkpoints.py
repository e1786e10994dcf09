"""Checkpoints that are whole or not there at all, and errors of one line for those that cannot be read."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO

from specdec.training import TrainingError
from specdec.training.module import TrainingModule

LAST, BEST = "last.ckpt", "best.ckpt"


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the destination and renames, so that a kill leaves the checkpoint before or the new one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Serialize in memory first: a full disk is then an OSError with the file's name."""
        buffer, path = io.BytesIO(), Path(path)
        torch.save(checkpoint, buffer)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        try:
            with partial.open("wb") as stream:
                stream.write(buffer.getbuffer())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        os.replace(partial, path)


class KeepLast(Callback):
    """Writes last.ckpt every so many optimizer steps, and at the end."""

    def __init__(self, folder: Path, every: int) -> None:
        self.path, self.every, self._saved = folder / LAST, every, -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What was resumed from is on disk."""
        self._saved = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Save behind an optimizer step, once."""
        if trainer.global_step % self.every == 0:
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save where the stage ends."""
        self._save(trainer, pl_module)

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._saved:
            assert isinstance(pl_module, TrainingModule)
            pl_module.check_finite()
            trainer.save_checkpoint(self.path)
            self._saved = trainer.global_step


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint's content.

    Raises:
        TrainingError: it is damaged, or none of ours.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        steps = content["global_step"], content["specdec"]["place"]
    except OSError:
        raise
    except Exception as error:  # unpickling raises whatever the damage leads to
        raise TrainingError(
            f"{path} is no checkpoint that can be read ({type(error).__name__}): delete it to begin this stage again, "
            f"or copy {BEST} over it where there is one"
        ) from error
    del steps
    return content


def check_resumable(module: TrainingModule, path: Path) -> None:
    """Refuse a checkpoint of other shapes before Lightning prints a page about it."""
    kept = {name: tuple(value.shape) for name, value in read_checkpoint(path)["state_dict"].items()}
    asked = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    for name in sorted(kept.keys() | asked.keys()):
        if kept.get(name) != asked.get(name):
            raise TrainingError(
                f"{path} is of another model: {name} is {kept.get(name)} there and {asked.get(name)} here; set "
                "force=true to begin again, or another output_dir"
            )
