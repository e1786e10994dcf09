"""Which execution gives a model's rows the same bits in every batch."""

from __future__ import annotations

import time
from typing import Any

from specdec.errors import ConfigError
from specdec.models.architecture import Architecture, context_length
from specdec.models.execution.agreement import disagreement
from specdec.models.execution.base import Execution
from specdec.models.execution.choice import made_execution
from specdec.models.execution.fusable import can_fuse
from specdec.models.execution.invariant import Invariant
from specdec.models.execution.invariant_eager import InvariantEager
from specdec.models.execution.invariant_fused import InvariantFused
from specdec.models.execution.native import no_native
from specdec.models.numerics.store import classes_of
from specdec.models.numerics.trial import difference
from specdec.models.small_copy import field

MOST_COLUMNS = 1 << 15
"""Rows of up to this length are measured, if the model's context is longer."""
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def make_invariant(name: str, module: Any, architecture: Architecture) -> Execution:
    """The native execution, whose sums run in one order by construction; else stock kernels in measured classes.

    Raises:
        ConfigError: the model cannot be run with the same bits in every batch; the message names what differs.
    """
    if name == "compiled":
        raise ConfigError(
            "execution=compiled with numerics=invariant: these kernels are not measured; set execution=auto"
        )
    if architecture.states.parts:
        raise ConfigError(
            f"numerics=invariant: the recurrent states of a {type(module).__name__} are computed by kernels that are "
            "not measured; set numerics=default"
        )
    if name == "native" or (name == "auto" and no_native(module) is None):
        made = made_execution("native", module)
        if isinstance(made, Execution):
            made.bits = "native"
            return made
        if name == "native":
            raise ConfigError(f"execution=native cannot run this model: {made}; set execution=auto")
    reason = can_fuse(module)
    if name == "fused" and reason is not None:
        raise ConfigError(f"execution=fused cannot run this model: {reason}; set execution=eager")
    if any(field(module.config.get_text_config(), count) for count in _EXPERTS):
        raise ConfigError(
            "numerics=invariant: experts compute as many tokens as are routed to them, so their shapes depend on the "
            "batch; set numerics=default"
        )
    start = time.perf_counter()
    fused = name != "eager" and reason is None
    execution = InvariantFused(module) if fused else InvariantEager(module, architecture)
    _prepare(execution, module, architecture)
    execution.prepare_s = time.perf_counter() - start
    return execution


def _prepare(execution: Invariant, module: Any, architecture: Architecture) -> None:
    longest = min(context_length(module.config.get_text_config()), MOST_COLUMNS)
    execution.classes, path = classes_of(execution, module.device, module.dtype, longest)
    execution.bits = {"measured": path.stem, **execution.classes.described()}
    if isinstance(execution, InvariantFused) and (reason := disagreement(execution)):
        raise ConfigError(f"execution=fused cannot run this model: {reason}; set execution=eager")
    if (part := difference(execution, module, architecture)) is not None:
        raise ConfigError(
            f"numerics=invariant: {part} gives other bits in a batch than alone on this machine; set numerics=default"
        )
