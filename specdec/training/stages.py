"""Resumable stages: a finished stage leaves a JSON record, which a later run reads in place of running the stage."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from specdec.core.files import flatten, write_json
from specdec.training import TrainingError

_DATA = ("questions", "documents", "tokens", "tokenizer", "heldout", "outputs", "greedy")  # stages that make data
_OF_FITS = (  # settings that those stages do not depend on
    *("fit.", "target.", "draft.", "distill.", "heads.", "validation.", "measure.", "draft_model."),
    *("new_draft", "start", "keep", "precision"),
)
_LEFT = (  # files of stages from which a later run goes on; not those of runs in folders below
    *("*/record.json", "*/last.ckpt", "*/best.ckpt", "*/points.json"),
    *("questions/batch_*", "outputs/batch_*", "greedy/batch_*", "unloop_*/outputs/batch_*"),
)

Record = dict[str, Any]
"""A stage's figures, the content of its record.json."""


def is_first_process(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process writes the stages: the only one, or the first of those of torchrun, srun or Lightning."""
    rank = next((environ[key] for key in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if key in environ), "0")
    return int(rank) == 0


def run_stage(
    name: str, folder: Path, force: bool, work: Callable[[Path], dict[str, Any]], *, by_all: bool = False
) -> dict[str, Any]:
    """Run `work(folder/name)` unless its record exists; the record is written last, by atomic rename.

    Args:
        by_all: of several processes all take part; otherwise the first one works, and the others wait for its record.
    """
    stage_folder = folder / name
    record_path = stage_folder / "record.json"
    if not is_first_process():
        return work(stage_folder) if by_all and not record_path.exists() else _awaited(record_path)
    if record_path.exists() and not force:
        print(f"[{name}] done before: {record_path}", flush=True)
        loaded: dict[str, Any] = json.loads(record_path.read_text())
        return loaded
    if force and stage_folder.exists():
        shutil.rmtree(stage_folder)  # otherwise the stage would resume at its end
    stage_folder.mkdir(parents=True, exist_ok=True)
    started_s = time.monotonic()
    print(f"[{name}] ...", flush=True)
    record = work(stage_folder)
    record.setdefault("wall_s", round(time.monotonic() - started_s, 1))
    write_json(record_path, record)
    print(f"[{name}] {json.dumps(record)[:300]}", flush=True)
    return record


def _awaited(record_path: Path) -> Record:
    """The record, as soon as the first process has written it; if that one fails, its launcher ends this one."""
    while not record_path.exists():
        time.sleep(0.1)
    loaded: Record = json.loads(record_path.read_text())
    return loaded


def keep_settings(
    folder: Path, settings: Record, force: bool, remedy: str = "choose another output_dir, or force=true"
) -> None:
    """Write the settings that decide a run's results beside its stages, so that no run reuses stages of other settings.

    With ``force`` what stages of other settings left is made unusable at once: a run that is killed before it has done
    them all again would find them finished.

    Raises:
        TrainingError: stages in the folder ran with other settings; the message names those, and what to do.
    """
    path, now = folder / "settings.json", flatten(json.loads(json.dumps(settings)))
    left = [file for pattern in _LEFT for file in folder.glob(pattern)]
    fitted = _fitted(folder)
    if path.exists() and (left or fitted):
        before = json.loads(path.read_text())
        begun = {file.relative_to(folder).parts[0] for file in left}
        free = () if begun - set(_DATA) or fitted else _OF_FITS
        other = [key for key in now if before.get(key) != now[key] and not key.startswith(free)]
        if other and force:
            for file in left:
                file.unlink()
        elif other:
            named = ", ".join(f"{key}={before.get(key)} there, {now[key]} now" for key in other[:3])
            more = f" and {len(other) - 3} more" if len(other) > 3 else ""
            raise TrainingError(f"{folder} holds a run with other settings ({named}{more}): {remedy}")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, now)


def _fitted(folder: Path) -> bool:
    """Whether there is a fit that a run would resume."""
    return any(path.suffix == ".ckpt" or path.name == "points.json" for path in folder.rglob("*"))
