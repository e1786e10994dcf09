"""How many processes a run has and who starts them; checks that need no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping

from omegaconf import DictConfig

from specdec.errors import ConfigError
from specdec.registry import unknown

_CHOICES = {
    "accelerator": ("auto", "cpu", "cuda"),
    "strategy": ("auto", "ddp", "ddp_fork"),
    "on_out_of_memory": ("fail", "shrink"),
    "on_locked": ("wait", "skip"),
}
_CLOCKLESS_DRAFT_LENGTHS = ("fixed", "lockstep")


def num_processes(runner: DictConfig) -> int:
    """Processes of a run, over all machines."""
    here = runner.devices if isinstance(runner.devices, int) else len(runner.devices)
    return int(here) * int(runner.num_nodes)


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
    """Whether this is the process of its run that prints and sums up."""
    if not launched_from_outside(environ):
        return True
    return int(environ.get("RANK", environ.get("SLURM_PROCID", "0"))) == 0


def check_runner(cfg: DictConfig) -> None:
    """Refuse what the runner group cannot mean.

    Raises:
        ConfigError: naming the setting.
    """
    runner = cfg.runner
    for key, options in _CHOICES.items():
        if runner[key] not in options:
            raise ConfigError(unknown(f"runner.{key}", runner[key], options))
    if isinstance(runner.devices, str | float) or not num_processes(runner) >= 1:
        raise ConfigError(f"runner.devices={runner.devices}: give a number from 1 on, or a list of GPUs such as [2,3]")
    if not isinstance(runner.devices, int) and runner.accelerator == "cpu":
        raise ConfigError(f"runner.devices={list(runner.devices)}: CPU processes have no numbers; give how many")
    size = num_processes(runner)
    if launched_from_outside() and size != world_size():
        raise ConfigError(
            f"{world_size()} processes were started and runner.devices={runner.devices}, "
            f"runner.num_nodes={runner.num_nodes} make {size}: set runner.devices to the processes per machine"
        )
    if runner.prefill_chunk is not None and runner.prefill_chunk < 1:
        raise ConfigError(f"runner.prefill_chunk={runner.prefill_chunk}: give tokens from 1 on, or null for no chunks")
    if runner.num_nodes > 1 and not launched_from_outside():
        raise ConfigError(f"runner.num_nodes={runner.num_nodes}: start it with torchrun or srun, on every machine")
    if runner.tensor_parallel:
        _check_tensor_parallel(cfg, size)


def _check_tensor_parallel(cfg: DictConfig, size: int) -> None:
    """All ranks must take the same decisions, so nothing may look at a clock."""
    if size == 1:
        raise ConfigError("runner.tensor_parallel=true splits the target over processes: set runner.devices=2 or more")
    if cfg.weights != "pretrained":
        raise ConfigError(f"runner.tensor_parallel=true with weights={cfg.weights}: only checkpoints can be split")
    if cfg.draft_length.name not in _CLOCKLESS_DRAFT_LENGTHS:
        raise ConfigError(
            f"runner.tensor_parallel=true with draft_length={cfg.draft_length.name}: it looks at the clock, which "
            "differs between processes; set draft_length=fixed"
        )
    if cfg.scheduler.get("prefill_share", 1) < 1:
        raise ConfigError(
            f"runner.tensor_parallel=true with scheduler.prefill_share={cfg.scheduler.prefill_share}: it looks at the "
            "clock, which differs between processes; set scheduler.prefill_share=1"
        )
    if cfg.arrivals.name != "none":
        raise ConfigError(
            f"runner.tensor_parallel=true with arrivals={cfg.arrivals.name}: requests come by the clock, which differs "
            "between processes; set arrivals=none"
        )
    if cfg.runner.on_out_of_memory != "fail":
        raise ConfigError("runner.tensor_parallel=true: its processes go in step; set runner.on_out_of_memory=fail")
