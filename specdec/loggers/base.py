"""The Logger contract: told when a point starts, finishes or fails. Exactly one of finish and fail is called."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class Logger(ABC):
    """Receives a point's config and its figures."""

    @abstractmethod
    def start(self, run_hash: str, settings: dict[str, Any], overrides: list[str]) -> None:
        """A point begins."""

    @abstractmethod
    def finish(self, summary: dict[str, Any]) -> None:
        """A point is done."""

    @abstractmethod
    def fail(self, message: str) -> None:
        """A point failed; it may not have started."""
