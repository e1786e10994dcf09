"""TensorBoard: a folder of event files per point."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
        """Open the event file and write the config."""
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
        """One scalar per figure, over the number of rounds."""
        assert self._writer is not None
        self._step = step
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, summary: dict[str, Any], samples: list[dict[str, Any]]) -> None:
        """Every figure of the summary, the tables, and the end."""
        assert self._writer is not None
        try:
            for name, value in _numbers(summary).items():
                self._writer.add_scalar(f"summary/{name}", value, self._step)
            lengths = [accepted for sample in samples for accepted in sample["accepted_lengths"]]
            if lengths:
                edges = [length - 0.5 for length in range(max(lengths) + 2)]
                self._writer.add_histogram("accepted_lengths", _tensor(lengths), self._step, bins=_tensor(edges))
            self._writer.add_text("categories", _markdown(by_category(samples)))
            self._writer.add_text("samples", _markdown(sample_rows(samples, self._num_samples)))
        finally:
            self._writer.close()

    def fail(self, message: str) -> None:
        """Say why, and close."""
        if self._writer is not None:
            self._writer.add_text("error", message)
            self._writer.close()


def _tensor(values: list[Any]) -> Any:
    import numpy as np

    return np.asarray(values)


def _preformatted(document: dict[str, Any]) -> str:
    return "    " + json.dumps(document, indent=1, default=str).replace("\n", "\n    ")


def _numbers(summary: dict[str, Any]) -> dict[str, float]:
    """Figures of a summary, nested ones under dotted names; texts and lists are left out."""
    found: dict[str, float] = {}
    for key, value in summary.items():
        if isinstance(value, dict):
            found.update({f"{key}.{name}": part for name, part in _numbers(value).items()})
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[key] = value
    return found


def _markdown(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )
