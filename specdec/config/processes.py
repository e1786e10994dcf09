"""How many processes a run has, and which of them this one is. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping

from specdec.config.schema import RunnerConfig


def num_processes(runner: RunnerConfig) -> int:
    """Processes of a run, over all machines."""
    here = runner.devices if isinstance(runner.devices, int) else len(runner.devices)
    return int(here) * runner.num_nodes


def launched_from_outside(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun or srun started this process as one of several."""
    return world_size(environ) > 1


def world_size(environ: Mapping[str, str] = os.environ) -> int:
    """Processes that torchrun or srun started; 1 without them."""
    if "TORCHELASTIC_RUN_ID" in environ:
        return int(environ["WORLD_SIZE"])
    if environ.get("SLURM_STEP_ID") and environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        return int(environ.get("SLURM_STEP_NUM_TASKS", 1))
    return 1


def is_main_process(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this is the process of its run that prints and writes the summary."""
    if not launched_from_outside(environ):
        return True
    return int(environ.get("RANK", environ.get("SLURM_PROCID", "0"))) == 0
