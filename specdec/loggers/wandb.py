"""Weights & Biases: a run per point, named by its overrides; offline unless told otherwise."""

from __future__ import annotations

from typing import Any

from specdec.errors import ConfigError
from specdec.loggers.base import Logger
from specdec.registry import unknown

_MODES = ("offline", "online", "disabled")


class WandbLogger(Logger):
    """Logs the resolved config and the summary. The run is always finished, also when the point fails."""

    def __init__(self, *, project: str, group: str | None, mode: str, directory: str) -> None:
        if mode not in _MODES:
            raise ConfigError(unknown("logger.mode", mode, _MODES))
        self._options: dict[str, Any] = {"project": project, "group": group, "mode": mode, "dir": directory}
        self._run: Any = None

    def start(self, run_hash: str, settings: dict[str, Any], overrides: list[str]) -> None:
        """Open the run."""
        import wandb

        self._run = wandb.init(
            name=" ".join(overrides) or run_hash,
            config={**settings, "hash": run_hash},
            settings=wandb.Settings(silent=True, console="off"),
            **self._options,
        )

    def finish(self, summary: dict[str, Any]) -> None:
        """Log every figure and close the run."""
        self._run.summary.update({key: value for key, value in summary.items() if value is not None})
        self._run.finish()

    def fail(self, message: str) -> None:
        """Close the run as failed."""
        if self._run is not None:
            self._run.summary["error"] = message
            self._run.finish(exit_code=1)
