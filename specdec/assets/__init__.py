"""Files that ship with the package, and the place of fetched ones: names with ``asset:`` and ``fetched:``."""

from __future__ import annotations

import os
from pathlib import Path

ASSETS = Path(__file__).parent
PREFIX = "asset:"
FETCHED = "fetched:"
"""Of models that `python -m specdec.models.fetch` has put into the cache."""


def cache_folder() -> Path:
    """``$SPECDEC_CACHE``, or ``specdec`` in the user's cache folder."""
    if own := os.environ.get("SPECDEC_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "specdec"


def resolve(name: str) -> str:
    """Turn ``asset:NAME`` and ``fetched:NAME`` into paths; anything else is returned as it is."""
    if name.startswith(FETCHED):
        return str(cache_folder() / name.removeprefix(FETCHED))
    return str(ASSETS / name.removeprefix(PREFIX)) if name.startswith(PREFIX) else name


def local_path(name: str) -> Path:
    """Where a name leads if it is a local file or folder: ``asset:``, ``fetched:`` and ``~`` are resolved."""
    return Path(resolve(name)).expanduser()


def named(path: str) -> str:
    """The name with ``asset:`` of a path within this folder, wherever it is installed; others as they are."""
    return PREFIX + Path(path).relative_to(ASSETS).as_posix() if Path(path).is_relative_to(ASSETS) else path
