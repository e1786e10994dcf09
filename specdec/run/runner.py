"""One point of a sweep: skip it if it is finished, otherwise compute it under the lock of its folder.

Torch is imported only if a point has to be computed.
"""

from __future__ import annotations

import json
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from specdec.config.explain import explain
from specdec.config.identity import CODE_AND_MACHINE, identity, input_hashes
from specdec.config.plugins import plugin_config
from specdec.config.processes import launched_from_outside
from specdec.config.reference import baseline_run, has_reference, is_baseline
from specdec.config.resolve import resolve
from specdec.config.schema import RunConfig
from specdec.core.lock import locked
from specdec.run.folder import ELSEWHERE, RunFolder

if TYPE_CHECKING:
    from specdec.run.distributed import Ranks

Summary = dict[str, Any]


def run_point(composed: DictConfig, overrides: list[str]) -> Summary:
    """Run one composed config; returns its summary (of the finished run on disk, where there is one)."""
    config = resolve(composed)
    if not launched_from_outside():  # there, all processes must take the same branch
        summary = _finished(config, RunFolder(config.results_dir, identity(config)))
        if summary is not None:
            return summary
    from specdec.run.distributed import launch

    return launch(config, run_in_ranks, config, overrides)


def run_in_ranks(ranks: Ranks, config: RunConfig, overrides: list[str]) -> Summary:
    """Run a config in every process of a run; if a process fails, the others abort the point."""
    folder = RunFolder(config.results_dir, identity(config))
    try:
        return _under_lock(ranks, config, folder, overrides)
    except Exception as error:
        message = _note_failure(ranks, folder, error)
        ranks.abort(error, message)
        raise


def _under_lock(
    ranks: Ranks, config: RunConfig, folder: RunFolder, overrides: list[str], env: dict[str, Any] | None = None
) -> Summary:
    """Compute a point, unless it is finished. With ``env``, only a run of the same code and machine counts as finished.

    If another process computes the point, wait for it or report it as running elsewhere (``runner.on_locked``).
    """
    with ExitStack() as stack:
        held, summary = ranks.from_main(lambda: _enter(config, folder, stack, ranks, env))
        if summary is not None:
            return summary
        if not held:
            return {**_record(config, overrides), "status": ELSEWHERE, "path": str(folder.path)}
        if not ranks.is_main and ranks.writes:  # a process of a killed run may still be ending
            stack.enter_context(locked(config.results_dir, f"{folder.hash}.rank{ranks.rank}"))
        if env is not None:
            ranks.say(f"measuring the baseline: scheduler=plain, batch {config.batch}")
        ranks.gather(None)
        from specdec.run.point import compute, opened_logger, prepare

        with opened_logger(config, ranks) as logger:
            run = prepare(config, folder, overrides, ranks)
            with_baseline = config.baseline and not is_baseline(config)
            baseline = _baseline(ranks, config, overrides, run.env) if with_baseline else None
            return compute(run, overrides, baseline, logger)


def _baseline(ranks: Ranks, config: RunConfig, overrides: list[str], env: dict[str, Any]) -> Summary:
    """scheduler=plain at the same batch size, as a point of its own; one of this code and machine is reused."""
    plain = replace(
        baseline_run(config),
        logger=plugin_config("logger", "none"),
        force=False,
        baseline=False,
        runner=replace(config.runner, on_locked="wait"),
    )
    folder = RunFolder(plain.results_dir, identity(plain))
    try:
        return _under_lock(ranks, plain, folder, overrides, env)
    except Exception as error:
        _note_failure(ranks, folder, error)
        raise


def _note_failure(ranks: Ranks, folder: RunFolder, error: Exception) -> str:
    message = explain(error)
    if ranks.is_main:
        with suppress(OSError):  # the disk may be full
            folder.fail(message)
    return message


def _enter(
    config: RunConfig, folder: RunFolder, stack: ExitStack, ranks: Ranks, env: dict[str, Any] | None
) -> tuple[bool, Summary | None]:
    """Lock a folder; returns whether the lock is held, and the summary if the point is finished."""

    def on_wait() -> bool:
        waits = config.runner.on_locked == "wait"
        what = "waiting for its result" if waits else "skipped for now"
        ranks.say(f"another process computes {folder.path}: {what} (runner.on_locked={config.runner.on_locked})")
        return waits

    held = stack.enter_context(locked(config.results_dir, folder.hash, on_wait))
    return held, _finished(config, folder, env)


def _finished(config: RunConfig, folder: RunFolder, env: dict[str, Any] | None = None) -> Summary | None:
    """The summary of a finished run that has all that is asked for, under the same conditions."""
    summary = None if config.force else folder.finished()
    if summary is None or not _is_valid(config, folder, summary, env):
        return None
    if env is None:
        print(f"finished already, skipped: {folder.path} (force=true runs it again)", flush=True)
    return {**folder.list_preset(summary, config.experiment), "path": str(folder.path), "skipped": True}


def _is_valid(config: RunConfig, folder: RunFolder, summary: Summary, env: dict[str, Any] | None) -> bool:
    """Whether a finished run has what is asked for now, with unchanged inputs."""
    if config.reference and has_reference(config) and summary.get("reference") is None:
        return False
    if config.baseline and summary.get("speedup_vs_ar") is None:
        return False
    path = folder.path / "env.json"
    recorded = json.loads(path.read_text()) if path.exists() else {}
    if env is not None and any(recorded.get(name) != env[name] for name in CODE_AND_MACHINE):
        return False
    return bool(recorded.get("inputs") == input_hashes(config))


def failed_point(composed: DictConfig, overrides: list[str], message: str) -> Summary:
    """The record of a failed point: what failed and why, without figures."""
    return {**_record(composed, overrides), "status": "failed", "error": message}


def _record(cfg: DictConfig | RunConfig, overrides: list[str]) -> Summary:
    return {"overrides": overrides, "pair": cfg.pair.name, "scheduler": cfg.scheduler.label, "batch": cfg.batch}
