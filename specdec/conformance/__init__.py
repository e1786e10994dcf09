"""The plug-in kit, which checks the promises of each contract: ``python -m specdec.conformance alignment=NAME``.

In Python and pytest: ``conformance(alignment="inplace")``. Neither torch nor hypothesis is imported before cases run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from specdec.errors import ConfigError, SpecdecError

if TYPE_CHECKING:
    from specdec.conformance.promises import PromiseFinding

GROUPS = ("alignment", "drafter", "tree", "selector", "verifier", "scheduler", "budget", "draft_length")
DEFAULT_SCALE = 1.0


class ConformanceError(SpecdecError):
    """A plug-in breaks a promise of its contract."""


def examine(
    group: str,
    name: str,
    params: dict[str, Any] | None = None,
    *,
    scale: float = DEFAULT_SCALE,
    shrink: bool = True,
    accelerator: str = "cpu",
    execution: str = "eager",
    progress: Callable[[str], None] = lambda what: None,
) -> list[PromiseFinding]:
    """Run the kit on ``group=name``; one finding per promise.

    Args:
        params: the plug-in's settings that differ from their defaults.
        scale: multiplies the number of drawn cases.
        shrink: look for the smallest failing case.
        accelerator: where models and tensors are: cpu, cuda, or auto (a GPU if there is one).
        execution: how the models' forwards are executed; all but eager run every case in float32.
        progress: called with the name of each step.

    Raises:
        ConfigError: there is no such group, plug-in, setting or execution, the execution cannot run the kit's models,
            or hypothesis is not installed.
    """
    import specdec.config  # noqa: F401  (declares the built-in plug-ins)
    from specdec.config.drafter_weights import check_drafter_weights
    from specdec.registry import lookup, unknown

    if group not in GROUPS:
        raise ConfigError(unknown("plug-in group with a contract", group, GROUPS))
    config = lookup(group, name).config
    settings = {part.name for part in fields(config)} - {"name", "label"}
    for key in params or {}:
        if key not in settings:
            raise ConfigError(unknown(f"setting of {group}={name}", key, settings))
    check_drafter_weights({**{part.name: part.default for part in fields(config)}, **(params or {})})
    try:
        import hypothesis  # noqa: F401
    except ImportError:
        raise ConfigError("the conformance kit needs hypothesis: pip install hypothesis") from None
    from specdec.conformance.explore import explore
    from specdec.conformance.models import on_device, small_pair
    from specdec.conformance.promises import BY_GROUP
    from specdec.conformance.suites import not_claimed, suite
    from specdec.models.pair import choose_device

    with on_device(choose_device(accelerator), execution):
        small_pair(0, "float32")  # an execution that cannot run it is refused here, not reported as a broken promise
        families = suite(group, name, params or {}, scale)
        findings = explore(families, BY_GROUP[group], shrink=shrink, progress=progress)
    unclaimed = not_claimed(group, name, params or {})
    return [replace(finding, claimed=finding.promise not in unclaimed) for finding in findings]


def conformance(
    *, scale: float = DEFAULT_SCALE, params: dict[str, Any] | None = None, execution: str = "eager", **plugin: str
) -> None:
    """Assert that a plug-in keeps every promise: ``conformance(alignment="mine")``.

    Raises:
        ConformanceError: naming every broken promise and the smallest case that breaks it.
    """
    if len(plugin) != 1:
        raise ConfigError(f"name one plug-in, as in conformance(alignment='inplace'), not {len(plugin)}")
    from specdec.conformance.report import describe

    ((group, name),) = plugin.items()
    findings = examine(group, name, params, scale=scale, execution=execution)
    if broken := [finding.promise for finding in findings if not finding.kept]:
        raise ConformanceError("\n".join([f"{group}={name} breaks {', '.join(broken)}", *describe(findings)]))
