"""Training of pairs, drafts and heads. Importing this package imports no torch: `--help` answers at once."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from specdec.errors import SpecdecError

if TYPE_CHECKING:
    from specdec.training.config import TrainConfig

# Recipe name -> "module:function", resolved on use: the modules import torch and lightning.
RECIPES: dict[str, str] = {"tiny": "specdec.training.tiny:train_tiny"}

TASKS = ("pair", "lm", "distill", "heads")


class TrainingError(SpecdecError):
    """A setting or a run that cannot go on; the message is one line that names the setting."""


def run_task(name: str, cfg: TrainConfig) -> dict[str, Any]:
    """Run the task that the config names; `name` is the pair whose recipe task=pair runs."""
    if cfg.task not in TASKS:
        raise TrainingError(f"task={cfg.task} is unknown; right would be: {', '.join(TASKS)}")
    if cfg.task == "pair":
        return run_recipe(name, cfg)
    report: dict[str, Any] = import_module("specdec.training.tasks").train(cfg)
    return report


def run_recipe(name: str, cfg: TrainConfig) -> dict[str, Any]:
    """Run the recipe of pair `name` and return its report."""
    if name not in RECIPES:
        raise TrainingError(f"pair={name} has no training recipe; right would be: {', '.join(sorted(RECIPES))}")
    module_name, function_name = RECIPES[name].split(":")
    report: dict[str, Any] = getattr(import_module(module_name), function_name)(cfg)
    return report
