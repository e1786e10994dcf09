"""Arrivals as they were recorded: a JSONL file with one ``{"arrival_s": ...}`` per conversation."""

from __future__ import annotations

import json
from pathlib import Path

from specdec.errors import ConfigError, DataError
from specdec.serving.base import Arrivals


class TraceArrivals(Arrivals):
    """The n-th line is the n-th conversation's; the first arrival is at 0, whatever the file counts from."""

    def __init__(
        self,
        *,
        path: str | None = None,
        speed: float = 1.0,
        think_s: float = 0.0,
        seed: int = 0,
        clock: str = "virtual",
    ) -> None:
        super().__init__(clock=clock, think_s=think_s, seed=seed)
        if not path or not Path(path).is_file():
            raise ConfigError(f"arrivals.path={path}: no such file; it needs one line with arrival_s per conversation")
        if not speed > 0:
            raise ConfigError(f"arrivals.speed={speed}: it must be above 0 (2 halves the time between arrivals)")
        self._path = Path(path)
        self._speed = speed

    def times(self, num_conversations: int) -> list[float]:
        """From the file; it may have more lines than are needed."""
        times = []
        for number, line in enumerate(self._path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                times.append(float(json.loads(line)["arrival_s"]))
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(f"{self._path.name} line {number}: no number under arrival_s ({error})") from None
        if len(times) < num_conversations:
            raise DataError(
                f"arrivals.path={self._path} has {len(times)} arrivals for {num_conversations} conversations: "
                "set data.num_prompts to fewer"
            )
        times = times[:num_conversations]
        return [(time - min(times)) / self._speed for time in times]
