"""Run folders: named by the hash of the resolved config, appended to while they run, skipped when finished.

``samples.jsonl`` and ``rounds.jsonl`` grow by whole lines and are never rewritten while a point runs, so that a process
that is killed at any moment leaves at most one torn line. A point on several processes has files of its own for each
(``samples.rank1.jsonl``), which are merged when it is done.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from specdec.config.drafter_weights import UNTRAINED
from specdec.config.schema import NOT_IDENTITY, NOT_IDENTITY_OF_RUNNER

HASH_LENGTH = 12
CODE_AND_MACHINE = ("git_revision", "versions", "python", "device", "processor", "threads", "pair_fingerprint")
"""Keys of env.json that decide speeds beside the settings."""
ELSEWHERE = "running elsewhere"
"""Status of a point that another process was computing."""


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
    for key in NOT_IDENTITY_OF_RUNNER:
        settings["runner"].pop(key, None)
    if resolved["debug"]["invariants"]:  # checked runs are slow: their times must not pass for those of others
        settings["invariants_every"] = resolved["debug"]["invariants_every"]
    if settings["drafter"].get(UNTRAINED) is False:  # so that results of trained weights keep their names
        del settings["drafter"][UNTRAINED]
    if settings["drafter"]["name"] == "none":  # nothing is drafted, so how much would be does not matter
        settings.pop("draft_length", None)
        settings.pop("gamma", None)
    return settings


def digest(settings: Any) -> str:
    """A short stable hash of plain data."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:HASH_LENGTH]


def read_summary(path: Path) -> dict[str, Any] | None:
    """The summary of a finished run's folder, or None."""
    try:
        summary = json.loads((path / "summary.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return summary if isinstance(summary, dict) and summary.get("status") == "done" else None


class LineFile:
    """A JSONL file, open for appending: every record is on disk when ``write`` returns, in one write.

    A torn last line, left by a process that was killed, is cut off first.
    """

    def __init__(self, path: Path) -> None:
        cut_torn_line(path)
        self._stream = path.open("ab", buffering=0)

    def __enter__(self) -> LineFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; a full disk raises, whatever part of the line it took."""
        _write_all(self._stream.fileno(), record)


class RunFolder:
    """``results_dir/<hash>``: config.yaml, env.json, attempts, samples and rounds, and last of all summary.json."""

    def __init__(self, results_dir: str | Path, settings: dict[str, Any]) -> None:
        self.hash = digest(settings)
        self.results_dir = Path(results_dir)
        self.path = self.results_dir / self.hash
        self.settings = settings

    def finished(self) -> dict[str, Any] | None:
        """The summary of a finished run, or None."""
        return read_summary(self.path)

    def clear(self) -> None:
        """Drop whatever an earlier run left."""
        if self.path.exists():
            (self.path / "summary.json").unlink(missing_ok=True)
            shutil.rmtree(self.path)

    def list_preset(self, summary: dict[str, Any], preset: str | None) -> dict[str, Any]:
        """Add a preset to those that the finished run belongs to; returns its summary."""
        presets = summary.get("experiments") or []
        if preset is None or preset in presets:
            return summary
        summary = {**summary, "experiments": [*presets, preset]}
        write_json(self.path / "summary.json", summary)
        return summary

    def start(self, env: dict[str, Any]) -> None:
        """Say what runs here; samples and rounds that are there stay."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name in ("summary.json", "failure.json"):
            (self.path / name).unlink(missing_ok=True)
        write_atomically(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(self.settings)))
        write_json(self.path / "env.json", env)

    def open_lines(self, kind: str, rank: int = 0) -> LineFile:
        """The file of ``kind`` (samples, rounds) that a process appends to."""
        return LineFile(self.path / (f"{kind}.rank{rank}.jsonl" if rank else f"{kind}.jsonl"))

    def samples(self) -> dict[int, dict[str, Any]]:
        """Finished rows of all attempts and processes, by index; one with an explanation replaces one without."""
        found: dict[int, dict[str, Any]] = {}
        for sample in self._all_lines("samples"):
            if not found.get(sample["index"], {}).get("explanation"):
                found[sample["index"]] = sample
        return found

    def rounds(self) -> list[dict[str, Any]]:
        """Rounds of all attempts and processes; each once, also if a process was killed while it merged the files."""
        numbered = {(line["attempt"], line["rank"], line["step"]): line for line in self._all_lines("rounds")}
        return [numbered[key] for key in sorted(numbered)]

    def attempts(self) -> list[dict[str, Any]]:
        """One record for each time that the point was started or gone on with."""
        return list(read_lines(self.path / "attempts.jsonl"))

    def fail(self, message: str) -> None:
        """Leave a note of why the point is not finished, beside what it has."""
        if self.path.is_dir():
            write_json(self.path / "failure.json", {"status": "failed", "error": message})

    def finish(self, samples: Iterable[dict[str, Any]], summary: dict[str, Any]) -> None:
        """Put the samples in prompt order, merge the processes' files, then write the summary: now the run is done."""
        rounds = self.rounds() if self._extra_files() else None
        _write_lines(self.path / "samples.jsonl", samples)
        if rounds is not None:
            _write_lines(self.path / "rounds.jsonl", rounds)
        write_json(self.path / "summary.json", summary)
        for path in self._extra_files():
            path.unlink(missing_ok=True)
        shutil.rmtree(self.path / "divergences", ignore_errors=True)

    def _extra_files(self) -> list[Path]:
        return sorted(self.path.glob("samples.rank*.jsonl")) + sorted(self.path.glob("rounds.rank*.jsonl"))

    def _all_lines(self, kind: str) -> Iterator[dict[str, Any]]:
        for path in (self.path / f"{kind}.jsonl", *sorted(self.path.glob(f"{kind}.rank*.jsonl"))):
            yield from read_lines(path)


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys; empty dicts are dropped."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    write_atomically(path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in records))


def write_json(path: Path, document: Any) -> None:
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
        _write_all(stream.fileno(), record)


def _write_all(descriptor: int, record: dict[str, Any]) -> None:
    """One write, unless the disk takes only a part: then the next one says why."""
    line = (json.dumps(record, allow_nan=False) + "\n").encode()
    while line:
        line = line[os.write(descriptor, line) :]


def cut_torn_line(path: Path) -> None:
    """Cut a file back to its last whole line."""
    if path.exists() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        os.truncate(path, text.rfind(b"\n") + 1)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a JSONL file; a torn or damaged line (a process was killed while writing) is left out."""
    if not path.exists():
        return
    with path.open("rb") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            yield record
