"""No logger: the run folder is all there is."""

from __future__ import annotations

from typing import Any

from specdec.run.loggers.base import Logger


class NoLogger(Logger):
    """Ignores everything."""

    def start(self, run_hash: str, settings: dict[str, Any], overrides: list[str], env: dict[str, Any]) -> None:
        """Nothing to do."""

    def finish(self, summary: dict[str, Any], samples: list[dict[str, Any]]) -> None:
        """Nothing to do."""

    def fail(self, message: str) -> None:
        """Nothing to do."""
