"""The Logger contract: told when a point starts, goes on, finishes or fails. One of finish and fail ends it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class Logger(ABC):
    """Receives a point's config, its figures as they come, and its summary. Nothing it is given holds a secret."""

    @abstractmethod
    def start(self, run_hash: str, settings: dict[str, Any], overrides: list[str], env: dict[str, Any]) -> None:
        """A point begins. ``env`` is what env.json holds: git revision, versions, machine, sweep."""

    def round(self, step: int, metrics: dict[str, float]) -> None:
        """Figures so far, after ``step`` rounds; called about once a second (see :mod:`specdec.run.loggers.meter`)."""
        return

    @abstractmethod
    def finish(self, summary: dict[str, Any], samples: list[dict[str, Any]]) -> None:
        """A point is done; ``samples`` are the records of samples.jsonl."""

    @abstractmethod
    def fail(self, message: str) -> None:
        """A point failed; it may not have started."""
