"""The command line of training: Hydra composes the config, a failure becomes one line. Imports no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import hydra
from omegaconf import DictConfig

from specdec.config.explain import explain
from specdec.training import NO_RECIPES, Recipes, run_task
from specdec.training.resolve import register_schema, selected_pair, to_dataclass


def main(recipes: Recipes = NO_RECIPES) -> None:
    """Entry point of ``train.py``; ``recipes`` are what task=pair can run, by the name of the pair."""

    def job(cfg: DictConfig) -> None:
        # Here as well as around Hydra, which would print a line of its own about a failed job.
        _in_one_line(lambda: run_task(selected_pair(cfg), to_dataclass(cfg), recipes))

    # Hydra prints long chains of causes and exits by itself; with this set, it raises the exception.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    register_schema()
    _in_one_line(hydra.main(version_base="1.3", config_path="pkg://specdec.conf", config_name="train")(job))


def _in_one_line(action: Callable[[], object]) -> None:
    """Run `action`; if it fails, end the process with one line on stderr."""
    try:
        action()
    except KeyboardInterrupt:
        _fail("interrupted; finished stages are kept, run the same command again to resume", 130)
    except Exception as error:
        if os.environ.get("SPECDEC_TRACEBACK"):
            raise
        _fail(explain(error, "train"), 1)


def _fail(message: str, code: int) -> None:
    print(f"train: {message}", file=sys.stderr)
    sys.exit(code)
