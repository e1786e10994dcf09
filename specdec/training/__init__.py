"""Training of the built-in pairs. Importing this package imports no torch: `--help` answers at once."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from specdec.errors import SpecdecError

if TYPE_CHECKING:
    from specdec.training.config import TrainConfig

# Recipe name -> "module:function", resolved on use: the modules import torch and lightning.
RECIPES: dict[str, str] = {"tiny": "specdec.training.tiny:train_tiny"}


class TrainingError(SpecdecError):
    """A setting or a run that cannot go on; the message is one line that names the setting."""


def run_recipe(name: str, cfg: TrainConfig) -> dict[str, Any]:
    """Run the recipe of pair `name` and return its report."""
    if name not in RECIPES:
        raise TrainingError(f"pair={name} has no training recipe; right would be: {', '.join(sorted(RECIPES))}")
    module_name, function_name = RECIPES[name].split(":")
    report: dict[str, Any] = getattr(import_module(module_name), function_name)(cfg)
    return report
