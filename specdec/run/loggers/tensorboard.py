"""TensorBoard: a folder of event files per point."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec.core.columns import COLUMNS
from specdec.core.files import flatten
from specdec.core.tables import Column, markdown, record_table
from specdec.errors import ConfigError
from specdec.run.loggers.base import Logger
from specdec.run.loggers.tables import by_category, run_name, sample_rows

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorboardLogger(Logger):
    """Step metrics and summary figures as scalars, tables as Markdown, accepted lengths as a histogram.

    Args:
        directory: one folder per sweep and point is made in it; ``tensorboard --logdir`` takes it.
        num_samples: rows of the sample table, at most.
    """

    def __init__(self, *, directory: str = "results/tensorboard", num_samples: int = 20) -> None:
        self._directory = Path(directory)
        self._num_samples = num_samples
        self._writer: SummaryWriter | None = None
        self._step = 0

    def start(self, run_hash: str, settings: dict[str, Any], overrides: list[str], env: dict[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "logger=tensorboard needs the tensorboard package: pip install 'specdec[tensorboard]'"
            ) from error
        folder = self._directory / str(env.get("sweep") or "runs") / run_hash
        self._writer = SummaryWriter(str(folder))
        self._writer.add_text("overrides", run_name(run_hash, overrides))
        self._writer.add_text("config", _preformatted(settings))
        self._writer.add_text("environment", _preformatted(env))

    def round(self, step: int, metrics: dict[str, float]) -> None:
        assert self._writer is not None
        self._step = step
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, summary: dict[str, Any], samples: list[dict[str, Any]]) -> None:
        assert self._writer is not None
        try:
            for name, value in flatten(summary).items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    self._writer.add_scalar(f"summary/{name}", value, self._step)
            lengths = [accepted for sample in samples for accepted in sample["accepted_lengths"]]
            if lengths:
                edges = [length - 0.5 for length in range(max(lengths) + 2)]
                counts, bins = np.asarray(lengths), np.asarray(edges)
                self._writer.add_histogram("accepted_lengths", counts, self._step, bins=bins)
            self._writer.add_text("categories", _markdown(by_category(samples)))
            self._writer.add_text("samples", _markdown(sample_rows(samples, self._num_samples)))
        finally:
            self._writer.close()

    def fail(self, message: str) -> None:
        if self._writer is not None:
            self._writer.add_text("error", message)
            self._writer.close()


def _preformatted(document: dict[str, Any]) -> str:
    return "    " + json.dumps(document, indent=1, default=str).replace("\n", "\n    ")


def _markdown(rows: list[dict[str, Any]]) -> str:
    columns = [COLUMNS.get(key, Column(key, key)) for key in rows[0]] if rows else []
    return markdown(record_table(columns, rows)) if rows else ""
