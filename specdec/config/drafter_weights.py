"""Drafters with trained weights of their own: a folder holds them, or `untrained=true` says that none does.

Untrained weights draft, slowly and losslessly, so nothing but a low acceptance would tell that a path was forgotten.
Imports no torch.
"""

from __future__ import annotations

from typing import Any

from specdec.errors import ConfigError

UNTRAINED = "untrained"


def check_weights(kind: str, path: str | None, untrained: bool) -> None:
    """Refuse a drafter that would draft with weights that nobody trained, unless that is asked for.

    Raises:
        ConfigError: there is no path, or there is one beside ``untrained``.
    """
    if path is None and not untrained:
        raise ConfigError(
            f"drafter={kind} without drafter.path would draft with untrained weights: set drafter.path=FOLDER of "
            f"`python train.py task=heads heads.kind={kind}`, or drafter.untrained=true"
        )
    if path is not None and untrained:
        raise ConfigError(f"drafter.untrained=true with drafter.path={path}: leave one out")


def check_chosen(drafter: Any) -> None:
    """The same of a config's drafter; those without weights of their own pass."""
    if hasattr(drafter, UNTRAINED):
        check_weights(drafter.name, drafter.path, drafter.untrained)


def drafter_label(name: str, untrained: bool = False) -> str:
    """What tables call a drafter: its name, with a word where its weights are untrained."""
    return f"{name} ({UNTRAINED})" if untrained else name
