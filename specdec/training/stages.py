"""Resumable stages: a finished stage leaves a JSON record, and a rerun reads it instead of working."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Record = dict[str, Any]
"""A stage's figures, as they lie in its record.json."""


def run_stage(name: str, folder: Path, force: bool, work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Run `work(folder/name)` unless its record exists; the record is written last, by atomic rename."""
    stage_folder = folder / name
    record_path = stage_folder / "record.json"
    if record_path.exists() and not force:
        print(f"[{name}] done before: {record_path}", flush=True)
        loaded: dict[str, Any] = json.loads(record_path.read_text())
        return loaded
    if force and stage_folder.exists():
        shutil.rmtree(stage_folder)  # or the stage would resume at its end
    stage_folder.mkdir(parents=True, exist_ok=True)
    started_s = time.monotonic()
    print(f"[{name}] ...", flush=True)
    record = work(stage_folder)
    record.setdefault("wall_s", round(time.monotonic() - started_s, 1))
    write_json(record_path, record)
    print(f"[{name}] {json.dumps(record)[:300]}", flush=True)
    return record


def write_json(path: Path, value: Any) -> None:
    """Write and rename, so that a file that exists is whole."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(partial, path)
