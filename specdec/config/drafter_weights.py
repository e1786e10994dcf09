"""Drafters with trained weights of their own: `path` is their folder, or `untrained=true` allows untrained ones.

Untrained weights draft losslessly, so only a low acceptance rate would show a forgotten path. Imports no torch.
"""

from __future__ import annotations

from typing import Any

from specdec.errors import ConfigError

UNTRAINED = "untrained"


def check_trained_weights(kind: str, path: str | None, untrained: bool) -> None:
    """Refuse a drafter with untrained weights, unless ``untrained`` allows it.

    Raises:
        ConfigError: neither the path nor ``untrained`` is given, or both are.
    """
    if path is None and not untrained:
        raise ConfigError(
            f"drafter={kind} without drafter.path would draft with untrained weights: set drafter.path=FOLDER of "
            f"`python train.py task=heads heads.kind={kind}`, or drafter.untrained=true"
        )
    if path is not None and untrained:
        raise ConfigError(f"drafter.untrained=true with drafter.path={path}: remove one of them")


def check_drafter_weights(drafter: Any) -> None:
    """The same check for a config's drafter; drafters without weights of their own pass."""
    if hasattr(drafter, UNTRAINED):
        check_trained_weights(drafter.name, drafter.path, drafter.untrained)


def drafter_label(name: str, untrained: bool = False) -> str:
    """A drafter's name in tables, which marks untrained weights."""
    return f"{name} ({UNTRAINED})" if untrained else name
