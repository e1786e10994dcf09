"""Run folders: named by the hash of the resolved config, written atomically, skipped when finished."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from omegaconf import DictConfig, OmegaConf

from specdec.config import NOT_IDENTITY

HASH_LENGTH = 12


def plain_copy(cfg: DictConfig) -> DictConfig:
    """A resolved copy without types and flags."""
    copied = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    assert isinstance(copied, DictConfig)
    return copied


def identity(cfg: DictConfig) -> dict[str, Any]:
    """The resolved settings that decide what a point computes."""
    resolved = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(resolved, dict)
    settings = {str(key): copy.deepcopy(value) for key, value in resolved.items() if key not in NOT_IDENTITY}
    if resolved["debug"]["invariants"]:  # checked runs are slow: their times must not pass for those of others
        settings["invariants_every"] = resolved["debug"]["invariants_every"]
    if settings["drafter"]["name"] == "none":  # nothing is drafted, so how much would be does not matter
        settings.pop("draft_length", None)
        settings.pop("gamma", None)
    return settings


def digest(settings: Any) -> str:
    """A short stable hash of plain data."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:HASH_LENGTH]


class RunFolder:
    """``results_dir/<hash>``: config.yaml, env.json, samples.jsonl, rounds.jsonl and, last of all, summary.json."""

    def __init__(self, results_dir: str | Path, settings: dict[str, Any]) -> None:
        self.hash = digest(settings)
        self.path = Path(results_dir) / self.hash
        self.settings = settings

    def finished(self) -> dict[str, Any] | None:
        """The summary of a finished run, or None."""
        try:
            summary = json.loads((self.path / "summary.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return summary if isinstance(summary, dict) and summary.get("status") == "done" else None

    def start(self, env: dict[str, Any]) -> None:
        """Make the folder new: whatever an unfinished run left is dropped."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name in ("summary.json", "samples.jsonl", "rounds.jsonl"):
            (self.path / name).unlink(missing_ok=True)
        write_atomically(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(self.settings)))
        write_json(self.path / "env.json", env)

    def open_samples(self) -> TextIO:
        """samples.jsonl, for appending finished rows one line at a time."""
        return (self.path / "samples.jsonl").open("a", encoding="utf-8")

    def open_rounds(self) -> TextIO:
        """rounds.jsonl, for appending."""
        return (self.path / "rounds.jsonl").open("a", encoding="utf-8")

    def finish(self, samples: Iterable[dict[str, Any]], summary: dict[str, Any]) -> None:
        """Put the samples in prompt order, then write the summary: from here on the run is done."""
        lines = "".join(json.dumps(sample) + "\n" for sample in samples)
        write_atomically(self.path / "samples.jsonl", lines)
        write_json(self.path / "summary.json", summary)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write readable JSON atomically; NaN and infinity are refused, because no other tool reads them."""
    write_atomically(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write to a temporary file in the same folder, flush it to disk, and rename it over ``path``."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line in a single write, so that several processes may share the file."""
    with path.open("ab", buffering=0) as stream:
        stream.write((json.dumps(record, allow_nan=False) + "\n").encode())


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a JSONL file; a torn last line (a process was killed while writing) is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            yield record
