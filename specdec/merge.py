"""Join results folders of several machines: ``python -m specdec.merge RESULTS OTHER [OTHER ...]``.

Finished points that RESULTS lacks are copied into it, each as a whole and under its lock, so a sweep may go on there
meanwhile. A point that both have stays as it is; where their outputs differ, that is said. Unfinished points are left
where they are. Reference outputs and the lists of sweeps are copied too. Nothing in the other folders is changed, and
running the command again copies nothing twice.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specdec.core.files import read_lines, write_json
from specdec.core.lock import locked
from specdec.errors import ConfigError, SpecdecError
from specdec.run.folder import read_summary

SHARED = ("reference", "sweeps")
"""Folders beside the points whose entries are never rewritten."""


def points(folder: Path) -> Iterator[Path]:
    """The folders of all points, finished or not."""
    found = (path.parent for path in sorted(folder.glob("*/config.yaml")))
    yield from (path for path in found if not path.name.startswith("."))  # half a copy of a killed merge


def merge(results: Path, other: Path) -> Counter[str]:
    """Copy what ``results`` lacks; returns how many points were copied, known, different, unfinished or busy.

    Raises:
        ConfigError: ``other`` is no results folder, or the same one.
    """
    if not any(points(other)):
        raise ConfigError(f"{other}: no points there (a results folder has one folder per point, with a config.yaml)")
    if results.resolve() == other.resolve():
        raise ConfigError(f"{other}: it is the results folder itself")
    results.mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    for point in points(other):
        counts[_merge_point(results, point)] += 1
    for name in SHARED:
        for entry in sorted((other / name).glob("*")):
            _copy(entry, results / name / entry.name)
    return counts


def _merge_point(results: Path, point: Path) -> str:
    if (summary := read_summary(point)) is None:
        return "unfinished"
    with locked(results, point.name, lambda: False) as held:
        if not held:
            return "busy"
        place = results / point.name
        if (known := read_summary(place)) is not None:
            presets = list(dict.fromkeys([*(known.get("experiments") or []), *(summary.get("experiments") or [])]))
            if presets != (known.get("experiments") or []):
                write_json(place / "summary.json", {**known, "experiments": presets})
            return "known" if _outputs(place) == _outputs(point) else "different"
        shutil.rmtree(place, ignore_errors=True)  # unfinished here, and nobody computes it
        _copy(point, place, {**summary, "path": str(place)})
        return "copied"


def _outputs(point: Path) -> dict[int, Any]:
    return {line["index"]: line["output_ids"] for line in read_lines(point / "samples.jsonl")}


def _copy(entry: Path, place: Path, summary: dict[str, Any] | None = None) -> None:
    """Copy a file or folder that is not there yet; it appears as a whole."""
    if place.exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        if entry.is_dir():
            shutil.copytree(entry, part)
        else:
            shutil.copy2(entry, part)
        if summary is not None:
            write_json(part / "summary.json", summary)
        os.replace(part, place)
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)


WORDS = {
    "copied": "{} copied",
    "known": "{} already there",
    "different": "{} already there WITH OTHER OUTPUTS (kept)",
    "unfinished": "{} unfinished (left out)",
    "busy": "{} being computed in RESULTS (left out: run this again)",
}


def main(argv: list[str] | None = None) -> int:
    """Merge, with a line per folder; returns 1 if outputs differ or a folder cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m specdec.merge", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path, help="the folder that gets the points; made if there is none")
    parser.add_argument("others", type=Path, nargs="+", metavar="OTHER", help="results folders of other machines")
    given = parser.parse_args(argv)
    failed = False
    for other in given.others:
        try:
            counts = merge(given.results, other)
        except (SpecdecError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
            continue
        print(f"{other}: {', '.join(text.format(counts[kind]) for kind, text in WORDS.items() if counts[kind])}")
        failed |= bool(counts["different"])
    print(f"{given.results}: {sum(read_summary(point) is not None for point in points(given.results))} finished points")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
