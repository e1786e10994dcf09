"""A frozen target that one device cannot hold: `transformers` splits its layers over the processes of the run.

A forward needs all processes at once, with the same inputs. Acceptance is measured by all of them alike. A stage that
writes files is the first one's, which has the others call the same functions of the target (`alike`, `led_stage`). In a
fit, where each process has rows of its own, the rows of one after the other go through the target (`Gathered`).
Embeddings and the head of logits are whole in every process, for drafts and heads read them for their own rows.
"""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from specdec.config.processes import launched_from_outside, world_size
from specdec.models.causal_lm import CausalLM
from specdec.models.tensor_parallel import WHOLE
from specdec.run.distributed import TIMEOUT, leave
from specdec.training import TrainingError
from specdec.training.config import TrainConfig
from specdec.training.device import device_of
from specdec.training.sharding import SHARDED
from specdec.training.stages import Record, is_first_process, run_stage

COPIED = {"colwise", "rowwise", "replicated_with_grad_allreduce", WHOLE}
"""Ways of splitting that give a layer when put together again."""
_OTHER_INPUTS = ("ppd", "longspec")
_is_leading = False


def num_parts(cfg: TrainConfig) -> int:
    """Processes that the target is split over."""
    return world_size() if cfg.device.tensor_parallel else 1


def check_split(cfg: TrainConfig) -> None:
    """Refuse what does not go with a split target.

    Raises:
        TrainingError: names the setting.
    """
    if not cfg.device.tensor_parallel:
        return
    asked, count = "device.tensor_parallel=true", cfg.device.devices * cfg.device.num_nodes
    if cfg.task not in ("distill", "heads"):
        raise TrainingError(f"{asked} with task={cfg.task}: it is for task=distill and task=heads; set it to false")
    if world_size() != count or count < 2 or "TORCHELASTIC_RUN_ID" not in os.environ:
        raise TrainingError(
            f"{asked} needs its processes from the start, one per device: run `torchrun --nproc-per-node=N train.py "
            f"device.devices=N ...` with N of 2 or more (processes: {world_size()}, device.devices: {count})"
        )
    if cfg.device.strategy == SHARDED:
        raise TrainingError(f"{asked} with device.strategy=fsdp: drafts are whole beside a split target; set ddp")
    if cfg.task == "heads" and cfg.heads.kind in _OTHER_INPUTS:
        raise TrainingError(
            f"{asked} with heads.kind={cfg.heads.kind}: it needs gradients or keys of all parts of the target; set it "
            "to false"
        )


def check_processes(cfg: TrainConfig) -> None:
    """Refuse processes that no setting asks for.

    Raises:
        TrainingError: names the settings.
    """
    count = cfg.device.devices * cfg.device.num_nodes
    if launched_from_outside() and world_size() != count:
        raise TrainingError(
            f"{world_size()} processes were started for device.devices x device.num_nodes = {count}: each would train "
            "alone into one folder; set device.devices to the processes per machine, and device.strategy=ddp"
        )


def join(cfg: TrainConfig) -> None:
    """Join the processes that torchrun started."""
    if torch.distributed.is_initialized():
        return
    device = device_of(cfg)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    atexit.register(leave)


@contextmanager
def others_may_fail() -> Iterator[None]:
    """Turn the error of a connection that another process has closed into one that says so.

    Raises:
        TrainingError: another process failed.
    """
    try:
        yield
    except Exception as error:
        if any(mark in str(error) for mark in ("gloo", "NCCL", "Connection closed")):
            raise TrainingError("another process of the run failed; its own message says why") from error
        raise


def check_copied(module: Any) -> None:
    """Refuse to copy layers of which a process holds parts that cannot simply be put together.

    Raises:
        TrainingError: names the setting.
    """
    other = sorted(set((module.tp_plan or {}).values()) - COPIED)
    if other:
        raise TrainingError(
            f"new_draft=target with device.tensor_parallel=true: a {type(module).__name__} is split in a way "
            f"({other[0]}) whose layers cannot be copied; give a draft by start=, or set new_draft=random"
        )


def alike(work: Callable[..., Any]) -> Callable[..., Any]:
    """For a function of a target: where the first process calls it in a `led_stage`, the others call it too."""

    @functools.wraps(work)
    def called(target: CausalLM, *arguments: Any) -> Any:
        if _is_leading:
            _broadcast((called, arguments))
        return work(target, *arguments)

    return called


def led_stage(
    name: str, folder: Path, cfg: TrainConfig, work: Callable[[Path], Record], target: Callable[[], CausalLM]
) -> Record:
    """`run_stage` for work that needs the target: the first process works, and the others do what it asks for."""
    if not cfg.device.tensor_parallel:
        return run_stage(name, folder, cfg.force, work)
    if is_first_process():
        with _leading():
            return run_stage(name, folder, cfg.force, work)
    while (asked := _broadcast(None)) is not None:
        call, arguments = asked
        call(target(), *arguments)
    return run_stage(name, folder, cfg.force, work)


@contextmanager
def _leading() -> Iterator[None]:
    global _is_leading
    _is_leading = True
    try:
        yield
    finally:
        _is_leading = False
    _broadcast(None)  # not after a failure, which ends all processes


def _broadcast(value: Any) -> Any:
    """What the first process gives."""
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


class Gathered(nn.Module):
    """The target as a fit calls it. Every process must call it equally often, with rows of its own."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def __getattr__(self, name: str) -> Any:
        """Everything else is the target's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.module, name)

    @torch.no_grad()
    def forward(self, **inputs: Any) -> Any:
        """The target's output for this process's own inputs."""
        theirs: list[Any] = [None] * torch.distributed.get_world_size()
        told = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in inputs.items()}
        torch.distributed.all_gather_object(theirs, told)
        output, own = None, torch.distributed.get_rank()
        for rank, asked in enumerate(theirs):
            given = {
                name: value.to(self.module.device) if isinstance(value, Tensor) else value
                for name, value in asked.items()
            }
            found = self.module(**given)
            output = found if rank == own else output
        return output


def as_called(target: CausalLM, cfg: TrainConfig) -> Any:
    """The target's module for an objective."""
    return Gathered(target.module) if cfg.device.tensor_parallel else target.module
