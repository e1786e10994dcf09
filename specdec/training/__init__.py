"""Training of language models, drafts and heads. Importing it imports no torch, so that `--help` answers at once."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from specdec.errors import SpecdecError

if TYPE_CHECKING:
    from specdec.training.config import TrainConfig

TASKS = ("pair", "lm", "distill", "heads", "selector")
Recipes = Mapping[str, str]
"""Name of a pair -> "module:function", imported on use because recipes import torch and lightning."""

NO_RECIPES: Recipes = MappingProxyType({})


class TrainingError(SpecdecError):
    """A setting or a run that cannot continue; the message is one line that names the setting."""


def run_task(name: str, cfg: TrainConfig, recipes: Recipes = NO_RECIPES) -> dict[str, Any]:
    """Run the task that the config names and return its report; task=pair runs the recipe of the pair `name`."""
    if cfg.task not in TASKS:
        raise TrainingError(f"task={cfg.task} is unknown; choose from {', '.join(TASKS)}")
    if cfg.task == "pair":
        return run_recipe(name, cfg, recipes)
    report: dict[str, Any] = import_module("specdec.training.tasks").train(cfg)
    return report


def run_recipe(name: str, cfg: TrainConfig, recipes: Recipes) -> dict[str, Any]:
    """Run the recipe of the pair `name` and return its report."""
    if name not in recipes:
        known = (
            f"choose from {', '.join(sorted(recipes))}"
            if recipes
            else ("recipes are in the repository, not in the installed package: run train.py from a checkout")
        )
        raise TrainingError(f"pair={name} has no training recipe; {known}")
    module_name, function_name = recipes[name].split(":")
    report: dict[str, Any] = getattr(import_module(module_name), function_name)(cfg)
    return report
