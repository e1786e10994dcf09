"""How a setting is declared: a dataclass field with its default and its help text."""

from __future__ import annotations

from dataclasses import field, fields, is_dataclass
from typing import Any


def setting(default: Any, help: str) -> Any:
    """A dataclass field that ``--help`` and docs/config.md explain.

    Args:
        default: the default value; a class or function is called to create it.
        help: what it means, with units and special values.
    """
    default_or_factory: Any = {"default_factory": default} if callable(default) else {"default": default}
    return field(**default_or_factory, metadata={"help": help})


def help_texts(config: type, prefix: str = "") -> dict[str, str]:
    """The help text of each field of a dataclass, by dotted name, including nested dataclasses."""
    found = {}
    for item in fields(config):
        if help := item.metadata.get("help"):
            found[f"{prefix}{item.name}"] = help
        nested = item.default_factory
        if isinstance(nested, type) and is_dataclass(nested):
            found |= help_texts(nested, f"{prefix}{item.name}.")
    return found
