"""Which execution a run uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specdec.errors import ConfigError
from specdec.execution.base import Execution
from specdec.execution.eager import EagerExecution
from specdec.execution.fused import FusedExecution, can_fuse
from specdec.registry import unknown

if TYPE_CHECKING:
    from specdec.model import CausalLM

EXECUTIONS = ("auto", "eager", "fused", "compiled")


def make_execution(name: str, model: CausalLM) -> Execution:
    """The execution of that name for a model; ``auto`` is fused where the architecture is known, else eager.

    Raises:
        ConfigError: no such execution, or the model cannot be run by it.
    """
    if name not in EXECUTIONS:
        raise ConfigError(unknown("execution", name, EXECUTIONS))
    if name == "auto":
        name = "eager" if can_fuse(model) else "fused"
    if name == "compiled":
        from specdec.execution.compiled import CompiledExecution  # torch.compile takes seconds to import

        return CompiledExecution(model)
    return FusedExecution(model) if name == "fused" else EagerExecution(model)
