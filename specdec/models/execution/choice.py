"""Which execution a run uses."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from specdec.errors import ConfigError
from specdec.models.execution.agreement import disagreement
from specdec.models.execution.base import Execution
from specdec.models.execution.eager import EagerExecution
from specdec.models.execution.fusable import can_fuse, known
from specdec.models.execution.fused import FusedExecution
from specdec.registry import unknown

if TYPE_CHECKING:
    from specdec.models.causal_lm import CausalLM

EXECUTIONS = ("auto", "eager", "fused", "compiled")


def make_execution(name: str, model: CausalLM) -> Execution:
    """The execution of that name for a model; ``auto`` is fused where that computes what the model does, else eager.

    Raises:
        ConfigError: no such execution, or the model cannot be run by it.
    """
    if name not in EXECUTIONS:
        raise ConfigError(unknown("execution", name, EXECUTIONS))
    if name == "eager" or (name == "auto" and not known(model)):
        return EagerExecution(model)
    made = _fused("fused" if name == "auto" else name, model)
    if isinstance(made, Execution):
        return made
    if name != "auto":
        raise ConfigError(f"execution={name} cannot run this model: {made}; set execution=eager")
    eager = EagerExecution(model)
    eager.note = f"execution=auto runs a {type(model.module).__name__} eagerly: {made}"
    return eager


def _fused(name: str, model: CausalLM) -> Execution | str:
    """An execution of one's own that is known to compute what the model does, or why there is none."""
    start = time.perf_counter()
    reason = can_fuse(model)
    if reason is not None:
        return reason
    kind = FusedExecution
    if name == "compiled":
        from specdec.models.execution.compiled import CompiledExecution  # torch.compile takes seconds to import

        kind = CompiledExecution
    execution = kind(model)
    reason = disagreement(execution)
    execution.prepare_s = time.perf_counter() - start
    return execution if reason is None else reason
