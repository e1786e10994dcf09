"""Files that ship with the package: the built-in pair and its held-out prompts."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).parent
PREFIX = "asset:"


def resolve(name: str) -> str:
    """Turn ``asset:NAME`` into the path of a shipped file or folder; anything else is returned as it is."""
    return str(ASSETS / name.removeprefix(PREFIX)) if name.startswith(PREFIX) else name
