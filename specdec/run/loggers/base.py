"""The Logger contract: it receives a point's start, progress, and end. Either finish or fail is the last call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class Logger(ABC):
    """Receives a point's config, its figures as they come, and its summary. Nothing that it receives holds a secret.

    Override the methods you need; all but ``finish`` do nothing by default.
    """

    def start(self, run_hash: str, settings: dict[str, Any], overrides: list[str], env: dict[str, Any]) -> None:  # noqa: B027
        """A point begins or resumes.

        ``env`` is what env.json holds (git revision, versions, machine, sweep), ``run``, an id that stays when the
        point resumes, and ``num_earlier_rounds``, those that it resumes after.
        """

    def round(self, step: int, metrics: dict[str, float]) -> None:  # noqa: B027
        """Figures so far, after ``step`` rounds; called about once a second (see :mod:`specdec.run.loggers.meter`)."""

    @abstractmethod
    def finish(self, summary: dict[str, Any], samples: list[dict[str, Any]]) -> None:
        """A point is done; ``samples`` are the records of samples.jsonl."""

    def fail(self, message: str) -> None:  # noqa: B027
        """A point failed; it may not have started."""
