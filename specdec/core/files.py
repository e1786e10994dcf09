"""Files that stay valid when the process is killed: appended JSON lines, atomic documents; and hashes of plain data."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

HASH_LENGTH = 12


def digest(settings: Any) -> str:
    """A short stable hash of plain data."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:HASH_LENGTH]


class LineFile:
    """A JSONL file open for appending: when ``write`` returns, the record is on disk, in one write.

    A torn last line of a killed process is removed first.
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
        """Append a record; a full disk raises OSError, even if it took part of the line."""
        _write_all(self._stream.fileno(), record)


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys; empty dicts are dropped."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write a JSONL file atomically."""
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
        let_others_read(Path(temporary))
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def let_others_read(*paths: Path) -> None:
    """Undo the permissions of temporary files, which `safetensors` keeps: only their owner can read them."""
    for path in paths:
        path.chmod(0o644)


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line in a single write, so that several processes may share the file."""
    with path.open("ab", buffering=0) as stream:
        _write_all(stream.fileno(), record)


def _write_all(descriptor: int, record: dict[str, Any]) -> None:
    """One write; if the disk takes only a part of it, the next one raises the reason."""
    line = (json.dumps(record, allow_nan=False) + "\n").encode()
    while line:
        line = line[os.write(descriptor, line) :]


def cut_torn_line(path: Path) -> None:
    """Truncate a file to its last whole line."""
    if path.exists() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        os.truncate(path, text.rfind(b"\n") + 1)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a JSONL file; a torn or damaged line (a process was killed while writing) is skipped."""
    if not path.exists():
        return
    with path.open("rb") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            yield record
