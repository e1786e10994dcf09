"""Which execution a run uses."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch

from specdec.config.checks import NUMERICS
from specdec.core.outputs import LOGITS
from specdec.errors import ConfigError
from specdec.models.architecture import Architecture
from specdec.models.execution.agreement import Checked, disagreement, layer_storage
from specdec.models.execution.base import Call, Chains, Execution
from specdec.models.execution.eager import EagerExecution
from specdec.models.execution.fusable import can_fuse, known, windows_of
from specdec.models.execution.fused import FusedExecution, Layer, OneLayer
from specdec.models.execution.native import NativeExecution, no_native
from specdec.registry import unknown

EXECUTIONS = ("auto", "eager", "fused", "native", "compiled")
_TRIED_ROWS, _TURNS = (1, 8), 5
"""Rows of the forwards by which ``auto`` compares native with fused, and how often each is run."""


def make_execution(name: str, module: Any, architecture: Architecture, numerics: str = "default") -> Execution:
    """The execution of that name for a model; ``auto`` is the fastest that agrees with the model, or else eager.

    Raises:
        ConfigError: there is no such execution, or it cannot run this model with these numerics.
    """
    if name not in EXECUTIONS:
        raise ConfigError(unknown("execution", name, EXECUTIONS))
    if numerics not in NUMERICS:
        raise ConfigError(unknown("numerics", numerics, NUMERICS))
    if numerics == "invariant":
        from specdec.models.numerics.choice import make_invariant

        return make_invariant(name, module, architecture)
    eager = EagerExecution(module, architecture)
    if name == "eager" or (name == "auto" and not known(module)):
        return eager
    if name == "auto":
        return _fastest(module, eager)
    made = made_execution(name, module)
    if isinstance(made, str):
        other = "fused" if name == "native" and can_fuse(module) is None else "eager"
        raise ConfigError(f"execution={name} cannot run this model: {made}; set execution={other}")
    return made


def _fastest(module: Any, eager: EagerExecution) -> Execution:
    """Native where it is supported and not slower than fused, fused where that agrees with the model, else eager."""
    note = None
    if module.device.type == "cpu" and module.dtype == torch.float32:
        made = made_execution("native", module)
        if isinstance(made, NativeExecution) and _is_faster(made):
            return made
        note = f"execution=auto runs without the native forward: {made}" if isinstance(made, str) else None
        del made  # its packed weights
    made = made_execution("fused", module)
    if isinstance(made, str):
        eager.note = f"execution=auto runs a {type(module).__name__} eagerly: {made}"
        return eager
    made.note = note
    return made


def made_execution(name: str, module: Any) -> Execution | str:
    """The execution, if it agrees with the model's own code, or why there is none."""
    start = time.perf_counter()
    reason = no_native(module) if name == "native" else can_fuse(module)
    if reason is not None:
        return reason
    execution = _kind(name)(module)
    reason = disagreement(execution)
    execution.prepare_s = time.perf_counter() - start
    return execution if reason is None else reason


def _kind(name: str) -> type[NativeExecution] | type[FusedExecution]:
    if name == "native":
        return NativeExecution
    if name == "fused":
        return FusedExecution
    from specdec.models.execution.compiled import CompiledExecution  # torch.compile takes seconds to import

    return CompiledExecution


@torch.inference_mode()
def _is_faster(native: NativeExecution) -> bool:
    """Whether it runs the first layer faster than the fused execution does, which is prepared for that layer alone."""
    module = native.module
    first = copy.deepcopy(module.model.layers[0])  # a fused layer joins the weights that it is given
    rivals = native, OneLayer(module, Layer(first, 0, windows_of(module.model)[0]))
    seconds = [sum(_layer_seconds(execution, num_rows) for num_rows in _TRIED_ROWS) for execution in rivals]
    return seconds[0] < seconds[1]


def _layer_seconds(execution: Checked, num_rows: int) -> float:
    """The fastest of a few forwards of the first layer over one token per row."""
    module, times = execution.module, []
    x_BTD = torch.ones(num_rows, 1, module.config.hidden_size)
    for _ in range(_TURNS):
        writer = layer_storage(module, 0, num_rows, module.dtype).append(1)
        call = Call(x_BTD, Chains(writer, 1, 0, module.device), writer, 0, LOGITS)
        start = time.perf_counter()
        execution.layer(0, call)
        times.append(time.perf_counter() - start)
    return min(times)
