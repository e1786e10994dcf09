"""``pair=FOLDER``: a pair that training exported, given by its folder. Imports no torch.

The folder has ``target/`` and optionally ``draft/`` and ``tokenizer/``; or it is a single model, whose provenance.json
says whether it was trained as a target or as the draft of a frozen target.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from specdec.config.labels import name_after
from specdec.config.schema import PairConfig
from specdec.errors import ConfigError

OPTION = "folder"
_PAIR = "pair="


def expand_pair_folder(arguments: list[str]) -> list[str]:
    """The command line with every ``pair=FOLDER`` as ``pair=folder pair.folder=FOLDER``."""
    words = []
    for word in arguments:
        path = word.removeprefix(_PAIR)
        is_folder = word.startswith(_PAIR) and ("/" in path or path in (".", "..")) and "," not in path
        words += [f"{_PAIR}{OPTION}", f"pair.folder='{path}'"] if is_folder else [word]
    return words


def fill_from_folder(pair: PairConfig) -> None:
    """Set target, draft and tokenizer from ``pair.folder`` where the config does not set them.

    Raises:
        ConfigError: there is no such folder, or it holds no pair.
    """
    if pair.folder is None:
        return
    folder = Path(pair.folder)
    if not folder.is_dir():
        raise ConfigError(f"pair={pair.folder}: no such folder; give one that train.py exported, or a pair's name")
    found = _pair_in(folder) if (folder / "target").is_dir() else _single_model(folder)
    for role, path in found.items():
        if getattr(pair, role) is None:
            setattr(pair, role, path)
    if pair.name == OPTION:
        roles = ("target", "draft")
        given = {role: getattr(pair, role) for role in roles}
        pair.name = name_after(folder.resolve().name, given, {role: found.get(role) for role in roles})


def _pair_in(folder: Path) -> dict[str, str]:
    return {role: str(folder / role) for role in ("target", "draft", "tokenizer") if (folder / role).is_dir()}


def _single_model(folder: Path) -> dict[str, str]:
    provenance: dict[str, Any] = {}
    if (folder / "provenance.json").is_file():
        try:
            provenance = json.loads((folder / "provenance.json").read_bytes())
        except ValueError as error:
            raise ConfigError(f"pair={folder}: provenance.json is damaged ({error})") from None
    config = provenance.get("config") or {}
    if provenance.get("task") == "heads":
        kind = (config.get("heads") or {}).get("kind", "KIND")
        raise ConfigError(f"pair={folder}: it has the weights of a drafter; set drafter={kind} drafter.path={folder}")
    if not (folder / "config.json").is_file():
        raise ConfigError(f"pair={folder}: neither target/ nor config.json in it; give a folder that train.py exported")
    if provenance.get("task") == "distill":
        return {"target": str(config["frozen"]), "draft": str(folder)}
    return {"target": str(folder)}
