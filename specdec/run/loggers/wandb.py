"""Weights & Biases: a run per point, grouped by sweep, named by its overrides; offline without an API key."""

from __future__ import annotations

import netrc
import os
from typing import Any
from urllib.parse import urlsplit

from specdec.errors import ConfigError
from specdec.registry import unknown
from specdec.run.loggers.base import Logger
from specdec.run.loggers.secrets import scrub
from specdec.run.loggers.tables import by_category, by_place, run_name, sample_rows

_MODES = ("auto", "offline", "online", "disabled")
# Where keys of W&B's own server are kept, before and since its move.
_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")


class WandbLogger(Logger):
    """Logs config, step metrics, tables and summary. The run is always finished, also when the point fails.

    A point that resumes continues its W&B run: the id is the same, and steps go on after those of earlier attempts.

    Args:
        group: name of a group of runs; None: the sweep's name.
        mode: ``auto`` is online if WANDB_API_KEY or the netrc file has a key, and offline otherwise.
        num_samples: rows of the sample table, at most.
    """

    def __init__(
        self,
        *,
        project: str = "specdec",
        entity: str | None = None,
        group: str | None = None,
        mode: str = "auto",
        directory: str = "results",
        num_samples: int = 100,
    ) -> None:
        if mode not in _MODES:
            raise ConfigError(unknown("logger.mode", mode, _MODES))
        self._mode: Any = _chosen_mode() if mode == "auto" else mode
        self._place: dict[str, Any] = {"project": project, "entity": entity, "dir": directory}
        self._group = group
        self._num_samples = num_samples
        self._run: Any = None
        self._num_earlier_steps = 0

    def start(self, run_hash: str, settings: dict[str, Any], overrides: list[str], env: dict[str, Any]) -> None:
        import wandb

        os.makedirs(str(self._place["dir"]), exist_ok=True)
        self._num_earlier_steps = env["num_earlier_rounds"]
        try:
            self._run = wandb.init(
                **self._place,
                mode=self._mode,
                id=f"{run_hash}-{env['run']}",
                resume="allow",
                group=scrub(self._group or env.get("sweep")),
                name=run_name(run_hash, overrides),
                config={
                    **settings,
                    "hash": run_hash,
                    "overrides": overrides,
                    **{key: env.get(key) for key in ("git_revision", "versions", "python", "device", "processor")},
                },
                # W&B's own metadata holds the command line, the user and the git remote; ours is in the config.
                settings=wandb.Settings(
                    silent=True, console="off", disable_git=True, disable_code=True, x_disable_meta=True
                ),
            )
        except wandb.errors.Error as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"logger.mode={self._mode}: {reason}; set WANDB_API_KEY, or logger.mode=offline"
            ) from error

    def round(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=self._num_earlier_steps + step)

    def finish(self, summary: dict[str, Any], samples: list[dict[str, Any]]) -> None:
        import wandb

        try:
            self._run.log(
                {
                    "categories": _table(by_category(samples)),
                    "samples": _table(sample_rows(samples, self._num_samples)),
                    **_place_plots(by_place(summary)),
                    "accepted_lengths": wandb.Histogram(np_histogram=_histogram(summary["accepted_histogram"])),
                }
            )
            self._run.summary.update({key: value for key, value in summary.items() if value is not None})
        finally:
            self._run.finish()

    def fail(self, message: str) -> None:
        if self._run is not None:
            self._run.summary["status"] = "failed"
            self._run.summary["error"] = message
            self._run.finish(exit_code=1)


def _chosen_mode() -> str:
    """The mode that the environment sets; else online if there is an API key."""
    if os.environ.get("WANDB_MODE") in _MODES:
        return os.environ["WANDB_MODE"]
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    try:
        known = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        known = {}
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "")).netloc
    return "online" if any(host in known for host in ((server,) if server else _HOSTS)) else "offline"


def _table(rows: list[dict[str, Any]]) -> Any:
    import wandb

    columns: list[Any] = list(rows[0]) if rows else []
    # Columns such as `reason` are often all None; W&B would call their type unknown and drop later values.
    return wandb.Table(columns=columns, data=[list(row.values()) for row in rows], allow_mixed_types=True)


def _place_plots(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Acceptance by place of the draft as a curve, first rejections as bars; nothing where nothing was drafted."""
    import wandb

    if not rows:
        return {}
    table = _table(rows)
    return {
        "acceptance_by_place": wandb.plot.line(table, "place", "accepted", title="Accepted up to a drafted token"),
        "first_rejections": wandb.plot.bar(table, "place", "first_rejections", title="First rejected token"),
    }


def _histogram(counts: list[int]) -> Any:
    """One bin per accepted length, centred on it."""
    counts = counts or [0]
    return counts, [length - 0.5 for length in range(len(counts) + 1)]
