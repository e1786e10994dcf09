"""Verdicts on the rows of a file, kept on disk as they are made, and what they say together. Imports no torch.

The first line of a verdicts file names all that decides them, so that an audit goes on where it stopped, and never
with verdicts that were made in another way.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from specdec.audit.rows import Row
from specdec.core.files import LineFile, read_lines
from specdec.errors import ConfigError

_EVERY_S = 5.0  # seconds between two lines of progress


def judged(
    rows: list[Row],
    judge: Callable[[Row], dict[str, Any]],
    kept: Path | None,
    settings: dict[str, Any],
    quiet: bool,
    recall: Callable[[dict[str, Any]], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Judge the rows that have no verdict in ``kept`` yet; returns all verdicts, in the order of the file.

    Args:
        recall: called first with every verdict that is known.

    Raises:
        ConfigError: ``kept`` holds verdicts made with other settings, or of another file.
    """
    known = {} if kept is None else known_verdicts(kept, settings)
    for verdict in known.values():
        recall(verdict)
    found = []
    stream = LineFile(kept) if kept is not None else None
    last = time.monotonic()
    try:
        if stream is not None and kept is not None and kept.stat().st_size == 0:
            stream.write({"settings": settings})
        for number, row in enumerate(rows, 1):
            if row.number not in known:
                known[row.number] = {"line": row.number, "id": row.name, **judge(row)}
                if stream is not None:
                    stream.write(known[row.number])
            found.append(known[row.number])
            if not quiet and time.monotonic() - last > _EVERY_S:
                last = time.monotonic()
                print(f"judged {number} of {len(rows)} rows", file=sys.stderr, flush=True)
    finally:
        if stream is not None:
            stream.__exit__(None, None, None)
    return found


def known_verdicts(kept: Path, settings: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The verdicts of an earlier, interrupted audit with the same settings, by line."""
    lines = list(read_lines(kept))
    if kept.exists() and kept.stat().st_size and (not lines or lines[0].get("settings") != settings):
        before = lines[0].get("settings") if lines else None
        changed = [key for key in settings if isinstance(before, dict) and before.get(key) != settings[key]]
        what = f"made with another {', '.join(changed)}" if changed else "not verdicts of this command"
        raise ConfigError(f"--out {kept}: it holds what is {what}; choose another file, or delete it")
    return {line["line"]: line for line in lines[1:]}


def counts_of(verdicts: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Rows per verdict."""
    return dict(Counter(str(verdict["verdict"]) for verdict in verdicts))
