"""Weights, gradients and optimizer state in parts on several devices (FSDP2), for drafts that one device cannot train.

Checkpoints hold the whole weights. To be measured and exported, a draft must fit on the first device, as it must to
serve.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from specdec.training import TrainingError
from specdec.training.config import TrainConfig

SHARDED = "fsdp"


def strategy_of(cfg: TrainConfig) -> Any:
    """Lightning's strategy."""
    if cfg.device.strategy != SHARDED:
        return cfg.device.strategy
    # Whole checkpoints: a folder of parts could not be checked byte by byte, nor replaced at once.
    count = cfg.device.devices * cfg.device.num_nodes
    return ModelParallelStrategy(data_parallel_size=count, tensor_parallel_size=1, save_distributed_checkpoint=False)


def check_sharding(cfg: TrainConfig) -> None:
    """Refuse what does not go with sharded weights.

    Raises:
        TrainingError: names the setting.
    """
    if cfg.device.strategy != SHARDED:
        return
    if cfg.task not in ("lm", "distill"):
        raise TrainingError(
            f"device.strategy=fsdp with task={cfg.task}: heads call their parts one by one, and each would gather its "
            "weights again; they fit on one device: use ddp"
        )
    if cfg.fit.ema:
        raise TrainingError(
            f"device.strategy=fsdp with fit.ema={cfg.fit.ema}: the average is not sharded; set fit.ema=null"
        )
    if cfg.precision in ("64-true", "16-mixed"):
        raise TrainingError(
            f"device.strategy=fsdp with precision={cfg.precision}: Lightning shards 32-true, bf16-mixed and bf16-true"
        )


def shard(model: nn.Module, mesh: Any) -> None:
    """Keep a part of every weight on each device; a layer's whole weights exist while it computes."""
    for part in [part for part in model.modules() if isinstance(part, nn.ModuleList)]:
        for layer in part:
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole_weights(model: nn.Module) -> dict[str, Any]:
    """All weights, on the CPU of the first process; every process must ask for them."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=options)


def own_part(tensor: Tensor) -> Tensor:
    """What this device holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether no number that this device holds is NaN or infinite."""
    return bool(torch.stack([own_part(tensor).isfinite().all() for tensor in tensors]).all())
