"""No logger: results are in the run folder alone."""

from __future__ import annotations

from typing import Any

from specdec.run.loggers.base import Logger


class NoLogger(Logger):
    """Ignores everything."""

    def finish(self, summary: dict[str, Any], samples: list[dict[str, Any]]) -> None:
        return
