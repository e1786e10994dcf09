"""One row per finished point in a CSV file that spreadsheets open."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from specdec.core.files import flatten
from specdec.core.lock import locked
from specdec.core.text_files import check_text
from specdec.errors import ConfigError, DataError
from specdec.run.loggers.base import Logger


class CsvLogger(Logger):
    """Appends the figures of every point to ``path``, nested ones under dotted names.

    The columns are those of the file's first row. A failed point has no row.
    """

    def __init__(self, *, path: str = "results/points.csv") -> None:
        self._path = Path(path)

    def start(self, run_hash: str, settings: dict[str, Any], overrides: list[str], env: dict[str, Any]) -> None:
        # Fail now rather than after the run if the file cannot be written.
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.open("a").close()
            check_text(self._path)
        except OSError as error:
            raise ConfigError(f"logger.path={self._path}: cannot be written ({error.strerror})") from error
        except DataError as error:
            raise ConfigError(f"logger.path: {error}, or give another file") from error

    def finish(self, summary: dict[str, Any], samples: list[dict[str, Any]]) -> None:
        flat = flatten(summary)
        with locked(self._path.parent, self._path.name), self._path.open("r+", newline="", encoding="utf-8") as stream:
            header = next(csv.reader(stream), None)
            stream.seek(0, 2)
            writer = csv.DictWriter(stream, fieldnames=header or list(flat), extrasaction="ignore")
            if header is None:
                writer.writeheader()
            writer.writerow(flat)
