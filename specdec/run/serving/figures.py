"""Serving metrics: the queue over time, latency per token, and how long rows waited between rounds."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from specdec.core.files import write_atomically, write_json
from specdec.core.metrics import percentiles, ratio
from specdec.core.round import Round
from specdec.core.sequence import Sequence, SequencePool

QUEUE, FIGURES = "queue.jsonl", "serving.json"


class ServingLog:
    """Records the pool after every round."""

    def __init__(self) -> None:
        self.series: list[dict[str, float | int]] = []
        self._rows: list[Sequence] = []
        self._busy_s = 0.0
        self._num_rounds = 0
        self._last_round: dict[int, int] = {}
        self._last_s: dict[int, float] = {}
        self._longest_wait: dict[int, int] = {}
        self._longest_gap_s: dict[int, float] = {}

    def observe(self, outcome: Round, pool: SequencePool, now: float) -> None:
        """Record the queue, and how long the round's rows had waited since their previous round."""
        self._num_rounds += 1
        self._rows += outcome.finished
        self._busy_s += sum(outcome.seconds.values())
        for row in pool.active:
            self._last_round.setdefault(row.index, self._num_rounds - 1)
        for row in outcome.rows:
            waited = self._num_rounds - 1 - self._last_round.get(row.index, self._num_rounds - 1)
            self._longest_wait[row.index] = max(waited, self._longest_wait.get(row.index, 0))
            self._last_round[row.index] = self._num_rounds
            gap_s = now - self._last_s.get(row.index, now)
            self._longest_gap_s[row.index] = max(gap_s, self._longest_gap_s.get(row.index, 0.0))
            self._last_s[row.index] = now
        self.series.append(
            {
                "time_s": round(now, 6),
                "num_waiting": len(pool.waiting),
                "num_active": len(pool.active),
                "num_running": len(outcome.rows),
            }
        )

    def write(self, folder: Path) -> None:
        """Write queue.jsonl and serving.json."""
        write_atomically(folder / QUEUE, "".join(json.dumps(point) + "\n" for point in self.series))
        write_json(folder / FIGURES, self.summary())

    def summary(self) -> dict[str, Any]:
        """Metrics over all finished rows.

        ``makespan_s``: time from the first arrival to the last token, idle time included. ``token_s``: per row, the
        mean time between tokens. ``gap_s``: per row, the longest time between two of its rounds. ``wait_rounds``: per
        row, the most consecutive rounds without it after its admission.
        """
        rows = self._rows
        ended = max((row.finished_s for row in rows if row.finished_s is not None), default=0.0)
        makespan_s = ended - min(row.arrived_s for row in rows)
        per_token = [
            (row.finished_s - row.first_token_s) / (len(row.output_ids) - 1)
            for row in rows
            if row.finished_s is not None and row.first_token_s is not None and len(row.output_ids) > 1
        ]
        waits = list(self._longest_wait.values())
        return {
            "makespan_s": makespan_s,
            "utilization": ratio(self._busy_s, makespan_s),
            "served_tokens_per_s": ratio(sum(len(row.output_ids) for row in rows), makespan_s),
            "token_s": percentiles(per_token),
            "gap_s": percentiles(list(self._longest_gap_s.values())),
            "wait_rounds": {**percentiles([float(wait) for wait in waits]), "max": max(waits, default=0)},
            "queue_length": self._queue_length(),
        }

    def _queue_length(self) -> dict[str, float | None]:
        """Requests waiting for admission: mean over time, and maximum."""
        spans = [(after["time_s"] - point["time_s"], point["num_waiting"]) for point, after in pairwise(self.series)]
        total = sum(span for span, _ in spans)
        mean = ratio(sum(span * waiting for span, waiting in spans), total)
        return {"mean": mean, "max": max((point["num_waiting"] for point in self.series), default=0)}


def read_figures(folder: Path) -> dict[str, Any]:
    """The metrics that ``ServingLog.write`` wrote; empty for a run without online serving."""
    path = folder / FIGURES
    figures: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return figures
