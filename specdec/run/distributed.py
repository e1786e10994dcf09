"""The processes of one run, started with Lightning Fabric: they split the prompts, or one target.

Data parallel: every rank decodes its own prompts with its own copy of the pair, and appends to its own files; ranks
communicate only between the phases of a point. Tensor parallel: all ranks decode all rows in step, each with a part of
the target's weights (`transformers` splits them), and only rank 0 writes.

A rank that fails sends its error through the collective that the others wait in, so that all of them abort the point
and none hangs.
"""

from __future__ import annotations

import atexit
import heapq
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch

from specdec.config.processes import launched_from_outside, num_processes
from specdec.config.schema import RunConfig, RunnerConfig
from specdec.core.prompts import Prompt
from specdec.errors import ConfigError, RankError, SpecdecError

T = TypeVar("T")
Job = Callable[["Ranks"], dict[str, Any]]
for _module in ("fabric.utilities.distributed", "fabric.utilities.rank_zero", "pytorch.utilities.rank_zero"):
    logging.getLogger(f"lightning.{_module}").setLevel(logging.WARNING)
TIMEOUT = timedelta(days=7)  # of a collective: a rank waits until the others have decoded their prompts


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place among those of the run."""

    rank: int = 0
    size: int = 1
    tensor_parallel: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints, locks and writes the summary."""
        return self.rank == 0

    @property
    def writes(self) -> bool:
        """Whether this process writes what it decodes; in tensor parallel, all ranks decode the same."""
        return self.is_main or not self.tensor_parallel

    @property
    def num_shares(self) -> int:
        """Number of shares that the prompts are split into."""
        return 1 if self.tensor_parallel else self.size

    def share(self, prompts: list[Prompt], max_new_tokens: int) -> list[Prompt]:
        """The prompts that this process decodes."""
        return shares(prompts, self.num_shares, max_new_tokens)[self.rank % self.num_shares]

    def say(self, text: str) -> None:
        """Print a line, on rank 0 only."""
        if self.is_main:
            print(text, flush=True)

    def gather(self, value: T, error: str | None = None) -> list[T]:
        """The values of all ranks, in order; waits for all.

        Raises:
            RankError: another rank failed; the message has its error.
        """
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(gathered, (error, value))
        for rank, (failure, _) in enumerate(gathered):
            if failure is not None and error is None:
                raise RankError(f"rank {rank} of {self.size}: {failure}")
        return [each for _, each in gathered]

    def abort(self, error: Exception, message: str) -> None:
        """Tell the other ranks that this one aborts the point; they abort it in their next collective."""
        if self.size == 1 or isinstance(error, RankError):
            return
        if not self.tensor_parallel:
            with suppress(RankError):
                self.gather(None, message)
        elif not isinstance(error, SpecdecError):  # the others may wait in the middle of a forward: end them too
            print(f"specdec: rank {self.rank} of {self.size}: {message}", file=sys.stderr, flush=True)
            os._exit(1)

    def from_main(self, make: Callable[[], T]) -> T:
        """The result of ``make`` on rank 0, for all ranks."""
        return self.gather(make() if self.is_main else None)[0]  # type: ignore[return-value]


def shares(prompts: list[Prompt], num_shares: int, max_new_tokens: int) -> list[list[Prompt]]:
    """Shares of about equal predicted work (tokens to read and to write), each in prompt order.

    Longest processing time first (Graham 1969): every prompt, longest first, goes to the least loaded share.
    """
    parts: list[list[Prompt]] = [[] for _ in range(num_shares)]
    loads = [(0, number) for number in range(num_shares)]
    for prompt in sorted(prompts, key=lambda prompt: -len(prompt.ids)):
        load, number = heapq.heappop(loads)
        parts[number].append(prompt)
        heapq.heappush(loads, (load + len(prompt.ids) + max_new_tokens, number))
    return [sorted(part, key=lambda prompt: prompt.index) for part in parts]


def launch(config: RunConfig, job: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Call ``job(ranks, *arguments)`` in every process of a run; returns what it returned on rank 0.

    A single process is this one. Several are spawned here, unless torchrun or srun started this process as one of them.
    """
    if launched_from_outside():
        return job(_join(config), *arguments)
    if num_processes(config.runner) == 1:
        _use_only_device(config.runner)
        return job(Ranks(), *arguments)
    return _spawn(config, job, arguments)


def _fabric(config: RunConfig, start_method: str, environment: Any = None) -> Any:
    from lightning.fabric import Fabric
    from lightning.fabric.strategies.ddp import DDPStrategy

    runner = config.runner
    devices = runner.devices if isinstance(runner.devices, int) else list(runner.devices)
    return Fabric(
        accelerator=accelerator(runner.accelerator),
        devices=devices,
        num_nodes=runner.num_nodes,
        strategy=DDPStrategy(start_method=start_method, timeout=TIMEOUT),  # type: ignore[arg-type]
        precision=PRECISIONS.get(runner.dtype),
        plugins=[environment] if environment else None,
    )


PRECISIONS: dict[str, Any] = {
    "float32": "32-true",
    "float64": "64-true",
    "bfloat16": "bf16-true",
    "float16": "16-true",
}
"""Fabric's names of the dtypes."""


def accelerator(name: str) -> str:
    """``auto`` is a GPU if there is one; `choose_device` checks the name before anything runs."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _use_only_device(runner: RunnerConfig) -> None:
    """``runner.devices=[1]`` is the second GPU."""
    if not isinstance(runner.devices, int) and accelerator(runner.accelerator) == "cuda":
        torch.cuda.set_device(int(runner.devices[0]))


_joined: Ranks | None = None


def _join(config: RunConfig) -> Ranks:
    """Join the other processes that torchrun or srun started; once, for all points of a sweep."""
    global _joined
    if _joined is None:
        fabric = _fabric(config, "popen")
        fabric.launch()
        atexit.register(leave)
        _joined = Ranks(fabric.global_rank, fabric.world_size, config.runner.tensor_parallel)
    if _joined.tensor_parallel != config.runner.tensor_parallel:
        raise ConfigError("runner.tensor_parallel cannot change within a sweep under torchrun: run two sweeps")
    return _joined


def leave() -> None:
    """End the process group: a thread of it that outlives the interpreter aborts the process (1 run in 40)."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _spawn(config: RunConfig, job: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Start the processes; however this one ends, they end with it."""
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from torch.multiprocessing import active_children
    from torch.multiprocessing.spawn import ProcessExitedException

    os.environ.pop("MASTER_PORT", None)  # of an earlier point
    start_method = "fork" if config.runner.strategy == "ddp_fork" else "spawn"
    fabric = _fabric(config, start_method, LightningEnvironment())
    before = {child.pid for child in active_children()}
    try:
        kind, result = fabric.launch(_work, job, config.runner.tensor_parallel, arguments)
    except ProcessExitedException as error:
        raise RankError(f"rank {error.error_index} of {num_processes(config.runner)} {_how_it_died(error)}") from None
    finally:
        for child in active_children():
            if child.pid not in before:
                child.kill()
                child.join()
    if kind == "error":
        raise RankError(result)
    answer: dict[str, Any] = result
    return answer


def _work(fabric: Any, job: Callable[..., dict[str, Any]], tensor_parallel: bool, arguments: tuple[Any, ...]) -> Any:
    """Run the job in a spawned process; returns errors as one line, because only rank 0's return value is sent back."""
    from specdec.config.explain import explain

    _die_with_parent()
    ranks = Ranks(fabric.global_rank, fabric.world_size, tensor_parallel)
    try:
        return "done", job(ranks, *arguments)
    except KeyboardInterrupt:
        os._exit(130)  # the parent was interrupted too and says so
    except Exception as error:
        if os.environ.get("SPECDEC_TRACEBACK"):
            raise
        return "error", explain(error)
    finally:
        leave()


def _die_with_parent() -> None:
    """End with a parent that is killed, and do not continue to write."""
    if ask := getattr(torch.multiprocessing, "_prctl_pr_set_pdeathsig", None):  # Linux
        ask(signal.SIGKILL)


def _how_it_died(error: Any) -> str:
    if error.signal_name == "SIGKILL":
        return "was killed (SIGKILL): if the machine ran out of memory, try a smaller batch or fewer runner.devices"
    return f"ended without a message ({error.signal_name or f'exit code {error.exit_code}'})"
