"""Several processes, as torchrun starts them: each evaluates its share of the requests, and rank 0 gets all results."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Processes:
    """This process's place among those that torchrun, or accelerate, has started; gloo carries what they exchange."""

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0")) if self.size > 1 else 0
        if self.size > 1 and torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        if self.size > 1 and not dist.is_initialized():
            dist.init_process_group("gloo")

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, one after the other along their first axis; of numbers, a vector."""
        if self.size == 1:
            return tensor
        mine = tensor.detach().cpu()
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine)
        return torch.cat([torch.atleast_1d(part) for part in parts])

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """The objects of all ranks on ``dst``, None elsewhere."""
        if self.size == 1:
            return [obj]
        found: list[Any] | None = [None] * self.size if self.rank == dst else None
        dist.gather_object(obj, found, dst=dst)
        return found

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()
