"""Checkpoints that are written atomically, and errors of one line for those that cannot be read."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO

from specdec.training import TrainingError
from specdec.training.module import TrainingModule

LAST, BEST = "last.ckpt", "best.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the destination and renames: a kill leaves the checkpoint before or the new one."""

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


class LastCheckpoint(Callback):
    """Writes last.ckpt every ``every`` optimizer steps, and at the end.

    Lightning's ModelCheckpoint does not write at the end, and in a resumed run it writes between the batches of the
    first optimizer step, whose gradients no checkpoint holds.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.path, self.every, self._saved = folder / LAST, every, -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step % self.every == 0:
            self._save_once(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_once(trainer)

    def _save_once(self, trainer: Trainer) -> None:
        """Save, unless this step is saved already."""
        if trainer.global_step != self._saved:
            trainer.save_checkpoint(self.path)
            self._saved = trainer.global_step


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint's content.

    Raises:
        TrainingError: the file is damaged, or not a checkpoint of a fit.
    """
    remedy = f"delete it to start this stage again, or copy {BEST} over it if that is there"
    content = load_archive(path, remedy)
    if "global_step" not in content or "place" not in content.get("specdec", {}):
        raise TrainingError(f"{path} is no checkpoint of a fit: {remedy}")
    return content


def load_archive(path: Path, remedy: str) -> dict[str, Any]:
    """What ``torch.save`` wrote, on the CPU; every byte is checked.

    The file is a zip archive with a checksum per part, which ``torch.load`` does not look at: it would load damaged
    weights without a word.

    Raises:
        TrainingError: the file is damaged or cut; ends with the remedy.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"the checksum of {damaged} does not match")
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # what unpickling raises depends on the damage
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
        raise TrainingError(f"{path} is no checkpoint that can be read ({reason}): {remedy}") from error
    return content


def check_resumable(module: TrainingModule, path: Path) -> None:
    """Refuse a checkpoint whose weights have other shapes than the model's."""
    kept = {name: tuple(value.shape) for name, value in read_checkpoint(path)["state_dict"].items()}
    asked = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    for name in sorted(kept.keys() | asked.keys()):
        if kept.get(name) != asked.get(name):
            raise TrainingError(
                f"{path} is of another model: {name} is {kept.get(name)} there and {asked.get(name)} here; set "
                "force=true to start again, or another output_dir"
            )
