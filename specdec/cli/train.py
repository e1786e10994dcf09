"""The command line of training: Hydra composes, a failure becomes one line. No torch import here."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import hydra
from omegaconf import DictConfig

from specdec.config.explain import explain
from specdec.training import run_task
from specdec.training.config import register_schema, selected_pair, to_dataclass


def main() -> None:
    """Entry point of ``train.py``."""
    # Hydra prints long chains of causes and exits by itself; with this set, it lets us have the exception.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    register_schema()
    run = hydra.main(version_base="1.3", config_path="pkg://specdec.conf", config_name="train")(_job)
    _in_one_line(run)


def _job(cfg: DictConfig) -> None:
    # Here as well as around Hydra, which announces a failing job on a line of its own.
    _in_one_line(lambda: run_task(selected_pair(cfg), to_dataclass(cfg)))


def _in_one_line(action: Callable[[], object]) -> None:
    """Run `action`; end the process with one line on stderr when it fails."""
    try:
        action()
    except KeyboardInterrupt:
        _fail("interrupted; finished stages are kept, run the same command again to go on", 130)
    except Exception as error:
        if os.environ.get("SPECDEC_TRACEBACK"):
            raise
        _fail(explain(error), 1)


def _fail(message: str, code: int) -> None:
    print(f"train: {message}", file=sys.stderr)
    sys.exit(code)
