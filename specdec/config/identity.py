"""What identifies a run: the settings that decide what it computes, and the content of the files that they name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from specdec.assets import local_path
from specdec.config.drafter_weights import UNTRAINED
from specdec.config.judging import NO_SELECTOR
from specdec.config.plugins import declared
from specdec.config.schema import NOT_IDENTITY, NOT_IDENTITY_OF_RUNNER, RunConfig
from specdec.registry import NOT_PARAMS, PLUGIN_GROUPS

_HASHED_INPUT_BYTES = 64 * 1024 * 1024
CODE_AND_MACHINE = ("git_revision", "versions", "python", "device", "processor", "threads", "pair_fingerprint")
"""Keys of env.json that affect speeds besides the settings."""

TREE_SETTINGS = {"nodes": None, "fit_nodes": False, "matches": 1, "searches": 150}
"""Settings of drafters with trees of their own, and the values at which they draft chains as before."""


def identity(config: RunConfig) -> dict[str, Any]:
    """The settings that decide what a point computes; their hash names its folder."""
    settings = {key: value for key, value in asdict(config).items() if key not in NOT_IDENTITY}
    for key in NOT_IDENTITY_OF_RUNNER:
        del settings["runner"][key]
    if config.debug.invariants:  # checked runs are slow: their times must not count as those of others
        settings["invariants_every"] = config.debug.invariants_every
    if settings["drafter"].get(UNTRAINED) is False:  # so that results of trained weights keep their hash
        del settings["drafter"][UNTRAINED]
    if config.selector.name == NO_SELECTOR:  # the same
        del settings["selector"]
    for key, default in TREE_SETTINGS.items():  # so that results from before there were trees keep their hash
        if settings["drafter"].get(key, not default) == default:
            del settings["drafter"][key]
    if settings["adapt"]["policy"] == "none":  # the same
        del settings["adapt"]
    elif settings["adapt"]["arm"] is None:  # the same
        del settings["adapt"]["arm"]
    if settings["turn"] == 0:  # the same
        del settings["turn"]
    if settings["numerics"] == "default":  # so that results from before there was a choice keep their hash
        del settings["numerics"]
    if settings["data"]["subset"] is None:  # so that results from before there were subsets keep their hash
        del settings["data"]["subset"]
    if settings["data"]["shared_prefix"] is None:  # the same of declared prefixes
        del settings["data"]["shared_prefix"]
    if not declared(config, "drafter").drafts:  # the draft length has no effect
        del settings["draft_length"], settings["gamma"]
    if not declared(config, "drafter").drafts or config.budget.name == "none":  # as before there were budgets
        del settings["budget"]
    if not declared(config, "drafter").grows or config.tree.name == "chain":  # chains keep their hash
        del settings["tree"]
    return settings


def input_hashes(config: RunConfig, prefix: str = "") -> dict[str, str]:
    """The content hash of each local input, by setting.

    Inputs are the pair's models and tokenizers, the prompts, and the files and folders that settings of the chosen
    plug-ins name: values of path and corpus, and values with a slash or a suffix (but not of loggers: they write).
    Only settings that begin with ``prefix`` are hashed.
    """
    found = {key: content_hash(name) for key, name in input_names(config).items() if key.startswith(prefix)}
    return {key: known for key, known in found.items() if known is not None}


def input_names(config: RunConfig) -> dict[str, str]:
    """The files, folders and names on the Hub that a point's settings name as inputs."""
    found = {f"pair.{role}": getattr(config.pair, role) for role in ("target", "draft", "tokenizer", "draft_tokenizer")}
    found |= {"data.path": config.data.path, "data.shared_prefix": config.data.shared_prefix}
    for group in PLUGIN_GROUPS:
        settings = [(key, value) for key, value in vars(getattr(config, group)).items() if key not in NOT_PARAMS]
        found |= {f"{group}.{key}": value for key, value in settings if group != "logger" and _is_path(key, value)}
    return {key: str(name) for key, name in found.items() if name}


def content_hash(name: str) -> str | None:
    """A hash of the content of a file or folder; None if it does not exist."""
    path = local_path(name)
    files = sorted(path.glob("*")) if path.is_dir() else [path]
    return hash_files(files, _HASHED_INPUT_BYTES) if path.exists() else None


def _is_path(key: str, value: object) -> bool:
    return isinstance(value, str) and (key in ("path", "corpus") or "/" in value or bool(Path(value).suffix))


def hash_files(files: Iterable[Path], max_bytes: int) -> str:
    """A hash of the files' names, sizes and contents; of those above ``max_bytes``, the time of the last change."""
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            stat = file.stat()
            digest.update(f"{file.name}:{stat.st_size}".encode())
            digest.update(file.read_bytes() if stat.st_size <= max_bytes else str(stat.st_mtime_ns).encode())
    return digest.hexdigest()[:16]
