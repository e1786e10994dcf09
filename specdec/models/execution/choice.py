"""Which execution a run uses."""

from __future__ import annotations

import time
from typing import Any

from specdec.errors import ConfigError
from specdec.models.architecture import Architecture
from specdec.models.execution.agreement import disagreement
from specdec.models.execution.base import Execution
from specdec.models.execution.eager import EagerExecution
from specdec.models.execution.fusable import can_fuse, known
from specdec.models.execution.fused import FusedExecution
from specdec.registry import unknown

EXECUTIONS = ("auto", "eager", "fused", "compiled")


def make_execution(name: str, module: Any, architecture: Architecture) -> Execution:
    """The execution of that name for a model; ``auto`` is fused where that agrees with the model, else eager.

    Raises:
        ConfigError: there is no such execution, or it cannot run this model.
    """
    if name not in EXECUTIONS:
        raise ConfigError(unknown("execution", name, EXECUTIONS))
    eager = EagerExecution(module, architecture)
    if name == "eager" or (name == "auto" and not known(module)):
        return eager
    made = _fused("fused" if name == "auto" else name, module)
    if isinstance(made, Execution):
        return made
    if name != "auto":
        raise ConfigError(f"execution={name} cannot run this model: {made}; set execution=eager")
    eager.note = f"execution=auto runs a {type(module).__name__} eagerly: {made}"
    return eager


def _fused(name: str, module: Any) -> Execution | str:
    """A fused or compiled execution that agrees with the model's own code, or why there is none."""
    start = time.perf_counter()
    reason = can_fuse(module)
    if reason is not None:
        return reason
    kind = FusedExecution
    if name == "compiled":
        from specdec.models.execution.compiled import CompiledExecution  # torch.compile takes seconds to import

        kind = CompiledExecution
    execution = kind(module)
    reason = disagreement(execution)
    execution.prepare_s = time.perf_counter() - start
    return execution if reason is None else reason
