"""Which windows a draft's cache may have. Imports no torch."""

from __future__ import annotations

from typing import Any

from specdec.errors import ConfigError


def check_window(drafter: Any) -> None:
    """The check of a config's drafter; those without a window pass.

    Raises:
        ConfigError: naming the setting.
    """
    if hasattr(drafter, "num_layers") and hasattr(drafter, "sinks"):
        check_self(drafter.num_layers, drafter.window, drafter.sinks)
    elif hasattr(drafter, "window") and hasattr(drafter, "sinks"):
        check_sizes(drafter.window, drafter.sinks)


def check_self(num_layers: int | None, window: int | None, sinks: int) -> None:
    """The check of ``drafter=self``: it has fewer layers or sees fewer tokens, not both.

    Raises:
        ConfigError: naming the settings.
    """
    check_sizes(window, sinks)
    if window is not None and num_layers is not None:
        raise ConfigError(
            f"drafter.num_layers={num_layers} with drafter.window={window}: with a window all layers draft, from the "
            "target's own cache; leave one of them out"
        )


def check_sizes(window: int | None, sinks: int) -> None:
    """Refuse a window without tokens, and sinks that are not a part of what it bounds.

    Raises:
        ConfigError: naming the setting.
    """
    if window is not None and window < 1:
        raise ConfigError(f"drafter.window={window}: it must be at least 1, or null for the whole row")
    if sinks < 0:
        raise ConfigError(f"drafter.sinks={sinks}: it must be at least 0")
    if window is not None and sinks > window:
        raise ConfigError(f"drafter.sinks={sinks} with drafter.window={window}: choose at most as many sinks")
