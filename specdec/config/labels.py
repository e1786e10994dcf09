"""Names of pairs in tables, and how two pairs (or prompt files) of one name are distinguished. Imports no torch.

A preset's name refers to its own checkpoints only; a pair with other checkpoints is named after those. Two pairs may
still have the same name (folders of one name, a folder whose content has changed, random weights of other sizes): then
the fingerprints of their weights, from their summaries, are appended.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

from omegaconf import OmegaConf

from specdec import assets

MARK = 6  # characters of a fingerprint that are shown
_ROLES = ("target", "draft")
_FINGERPRINTS = {"pair": ("target_fingerprint", "draft_fingerprint"), "data": ("data_fingerprint",)}
"""Keys of a summary: a name, and the fingerprints that distinguish two of the same name."""
_GENERIC = re.compile(r"model|export|final|best|last|hf|snapshots|[0-9a-f]{40}")  # folders that do not name a model
_NUMBERED = re.compile(r"(checkpoint|step|epoch)[-_=]?\d+")
_CACHED = re.compile(r"models--.+--(?P<name>.+?)")  # a folder of the Hub's cache


def name_after(name: str, given: dict[str, str | None], preset: dict[str, str | None]) -> str:
    """A pair's name.

    Args:
        name: the preset's. given: the target and draft that will be loaded. preset: those that the name stands for.

    Returns:
        ``name``; or TARGET+DRAFT if a checkpoint is not the preset's (one name if both are the same).
    """
    if all(given[role] in (preset[role], None) for role in _ROLES):
        return name
    target, draft = (given[role] for role in _ROLES)
    words = [name if target in (preset["target"], None) else short_name(str(target), "target")]
    if draft is not None:
        words.append(short_name(draft, "draft"))
    return "+".join(dict.fromkeys(words))


def short_name(checkpoint: str, role: str) -> str:
    """The part of a folder, file or Hub name that says which model it is: of runs/a/export/target that is ``a``."""
    place = os.path.expanduser(checkpoint.removeprefix(assets.PREFIX).removeprefix(assets.FETCHED))
    if place in (".", "..") or place.startswith(("./", "../")):
        place = os.path.abspath(place)
    parts = [part for part in PurePath(place).parts if part not in ("/", ".")]
    while len(parts) > 1 and (parts[-1] == role or _GENERIC.fullmatch(parts[-1])):
        parts.pop()
    if not parts:
        return checkpoint
    if len(parts) > 1 and _NUMBERED.fullmatch(parts[-1]):
        return "-".join(parts[-2:])
    cached = _CACHED.fullmatch(parts[-1])
    return cached["name"] if cached else parts[-1].removesuffix(".gguf")


def tell_apart(points: Iterable[dict[str, Any]]) -> None:
    """Append fingerprints to the names of pairs and data that refer to several of them.

    A missing fingerprint is ignored: a pair without a draft and an old result have none.
    """
    points = list(points)
    for what, fingerprints in _FINGERPRINTS.items():
        by_name: dict[str, list[dict[str, Any]]] = {}
        for point in points:
            by_name.setdefault(str(point.get(what)), []).append(point)
        for name, alike in by_name.items():
            differing = [key for key in fingerprints if len({point[key] for point in alike if point.get(key)}) > 1]
            for point in alike:
                marks = [str(point[key])[:MARK] for key in differing if point.get(key)]
                if marks:
                    point[what] = f"{name} {'+'.join(marks)}"


def _resolve(name: str, target: str | None = None, draft: str | None = None, *, _parent_: Any) -> str:
    given = {role: _parent_.get(role) for role in _ROLES}
    return name_after(name, given, {"target": target, "draft": draft})


OmegaConf.register_new_resolver("pair_name", _resolve, replace=True)
"""``${pair_name:NAME,TARGET,DRAFT}``: the preset's name, or one after the checkpoints that are given instead."""
