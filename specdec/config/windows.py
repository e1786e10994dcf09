"""Which windows a draft's cache may have. Imports no torch."""

from __future__ import annotations

from typing import Any

from specdec.errors import ConfigError


def check_window(drafter: Any) -> None:
    """The check of a config's drafter; those without a window pass.

    Raises:
        ConfigError: naming the setting.
    """
    if hasattr(drafter, "window") and hasattr(drafter, "sinks"):
        check_sizes(drafter.window, drafter.sinks)


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
