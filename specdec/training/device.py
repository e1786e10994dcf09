"""Where a run trains, and the number formats there: one answer for Lightning, the frozen target and the engine."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from specdec.registry import unknown
from specdec.training import TrainingError
from specdec.training.config import TrainConfig

ACCELERATORS = ("auto", "cpu", "gpu", "cuda")
FORMATS = ("auto", "float32", "bfloat16", "float16", "float64")
_OF_PRECISION = {"64": torch.float64, "bf16": torch.bfloat16, "16": torch.float16}


def device_of(cfg: TrainConfig, environ: Mapping[str, str] = os.environ) -> torch.device:
    """The device of this process: ``auto`` is a GPU, or the CPU without one.

    Each process of a run on several GPUs computes on its own, and so do the frozen target and the engine there.

    Raises:
        TrainingError: there is no such device, or the strategy starts processes that share what is loaded before them.
    """
    name, device = cfg.device.accelerator, cfg.device
    if name not in ACCELERATORS:
        raise TrainingError(unknown("device.accelerator", name, ACCELERATORS))
    if device.strategy.endswith(("spawn", "fork", "notebook")):
        raise TrainingError(
            f"device.strategy={device.strategy}: its processes share what was loaded before them; use ddp"
        )
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise TrainingError(f"device.accelerator={name}: this machine has no CUDA device; use device.accelerator=cpu")
    return torch.device("cuda", int(environ.get("LOCAL_RANK", environ.get("SLURM_LOCALID", "0"))))


def lightning_accelerator(cfg: TrainConfig) -> str:
    """The same device by Lightning's name."""
    return "gpu" if device_of(cfg).type == "cuda" else "cpu"


def precision_of(cfg: TrainConfig) -> str:
    """Lightning's name of the precision; ``auto`` is bfloat16 only where the device has instructions for it.

    Without them bfloat16 is emulated: 9 instead of 55 GFLOP/s in matrix products on a core with AVX2.
    """
    if cfg.precision != "auto":
        return cfg.precision
    if device_of(cfg).type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return "bf16-mixed" if native else "32-true"


def frozen_dtype(cfg: TrainConfig) -> torch.dtype:
    """The number format of the frozen target: ``auto`` is that in which the precision multiplies matrices.

    On a CPU under a mixed precision it is float32, in which runs decode there; bfloat16 took 1.25 times as long.

    Raises:
        TrainingError: the name is unknown, or it is half a format that a ``true`` precision does not have.
    """
    if cfg.frozen_dtype not in FORMATS:
        raise TrainingError(unknown("frozen_dtype", cfg.frozen_dtype, FORMATS))
    precision = precision_of(cfg)
    computed = _OF_PRECISION.get(precision.partition("-")[0], torch.float32)
    is_mixed = precision.endswith("-mixed")
    usual = torch.float32 if is_mixed and device_of(cfg).type == "cpu" else computed
    asked = usual if cfg.frozen_dtype == "auto" else getattr(torch, cfg.frozen_dtype)
    if asked != computed and not is_mixed:
        raise TrainingError(
            f"frozen_dtype={cfg.frozen_dtype} with precision={precision}: drafts and heads could not read its hidden "
            "states; set frozen_dtype=auto, or a mixed precision"
        )
    dtype: torch.dtype = asked
    return dtype
