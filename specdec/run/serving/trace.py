"""Recorded arrivals: a JSONL file with one ``{"arrival_s": ...}`` per conversation."""

from __future__ import annotations

import json
import math
from typing import Any

from specdec.assets import local_path
from specdec.core.text_files import listed, text_lines
from specdec.errors import ConfigError, DataError
from specdec.run.serving.base import Arrivals


class TraceArrivals(Arrivals):
    """Line n is the arrival of conversation n; times are shifted so that the first arrival is at 0."""

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
        if not path or not local_path(path).is_file():
            raise ConfigError(f"arrivals.path={path}: no such file; it needs one line with arrival_s per conversation")
        if not speed > 0:
            raise ConfigError(f"arrivals.speed={speed}: it must be above 0 (2 halves the time between arrivals)")
        self._path = local_path(path)
        self._speed = speed
        self._times = self._read()

    def times(self, num_conversations: int) -> list[float]:
        if len(self._times) < num_conversations:
            raise DataError(
                f"arrivals.path={self._path} has {len(self._times)} arrivals for {num_conversations} conversations: "
                "set data.num_prompts to fewer"
            )
        times = self._times[:num_conversations]
        return [(time - min(times)) / self._speed for time in times]

    def _read(self) -> list[float]:
        times, broken = [], []
        for line in text_lines(self._path):
            if not line.problem and not line.text.strip():
                continue
            try:
                if line.problem:
                    raise ValueError(line.problem)
                times.append(_moment(json.loads(line.text)))
            except (ValueError, RecursionError) as error:
                broken.append(f"line {line.number}: no number under arrival_s ({error})")
        if broken:
            raise DataError(f"{self._path.name} {listed(broken)}")
        return times


def _moment(record: Any) -> float:
    value = record.get("arrival_s") if isinstance(record, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"it has {json.dumps(record)[:60]}")
    return float(value)
