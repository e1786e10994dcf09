"""One point of a sweep: skip it if it is finished, otherwise decode, compare, measure and write it down.

Torch is imported only once a point really has to be computed.
"""

from __future__ import annotations

import json
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from specdec.config.checks import check_serving
from specdec.config.drafter_weights import check_chosen
from specdec.config.explain import explain
from specdec.config.identity import CODE_AND_MACHINE, identity, plain_copy
from specdec.config.pair_folder import fill_from_folder
from specdec.config.processes import check_runner, launched_from_outside
from specdec.config.reference import follows_plain, has_reference, sampling_params
from specdec.config.schema import RANDOM_WEIGHTS_PROMPTS, RunConfig
from specdec.core.lock import locked
from specdec.core.stop_strings import check_stop_strings
from specdec.errors import ConfigError
from specdec.registry import PLUGIN_GROUPS, lookup, unknown
from specdec.run.folder import ELSEWHERE, RunFolder

if TYPE_CHECKING:
    from specdec.run.distributed import Ranks


def run_point(cfg: DictConfig, overrides: list[str]) -> dict[str, Any]:
    """Run one composed config; returns its summary (of the finished run on disk, where there is one)."""
    cfg = resolve(cfg)
    if not launched_from_outside():  # there, all processes must go the same way
        summary = _finished(cfg, RunFolder(cfg.results_dir, identity(cfg)))
        if summary is not None:
            return summary
    from specdec.run.distributed import launch

    return launch(cfg, run_in_ranks, cfg, overrides)


def run_in_ranks(
    ranks: Ranks,
    cfg: DictConfig,
    overrides: list[str],
    part_of: str | None = None,
    env: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run a resolved config in every process of a run, under the lock of its folder.

    A point that another process is computing is waited for, or reported as running elsewhere, as ``runner.on_locked``
    says. ``part_of`` names what a point is computed for, where it is not one of the user's own; a finished one is
    then taken only if it ran under the same code and on the same machine as ``env`` tells.
    """
    folder = RunFolder(cfg.results_dir, identity(cfg))
    try:
        with ExitStack() as stack:
            held, summary = ranks.from_main(lambda: _enter(cfg, folder, stack, ranks, env))
            if summary is not None:
                return summary
            if not held:
                return {**_record(cfg, overrides), "status": ELSEWHERE, "path": str(folder.path)}
            if not ranks.is_main and ranks.writes:  # a killed run's process may still be about to end
                stack.enter_context(locked(cfg.results_dir, f"{folder.hash}.rank{ranks.rank}"))
            if part_of:
                ranks.say(part_of)
            ranks.gather(None)
            from specdec.run.point import compute_point

            return compute_point(cfg, folder, overrides, ranks)
    except Exception as error:
        message = explain(error)
        if ranks.is_main:
            with suppress(OSError):  # the disk may be full
                folder.fail(message)
        if part_of is None:
            ranks.give_up(error, message)
        raise


def _enter(
    cfg: DictConfig, folder: RunFolder, stack: ExitStack, ranks: Ranks, env: dict[str, Any] | None
) -> tuple[bool, dict[str, Any] | None]:
    """Lock a folder; whether it is held, and the summary if there is nothing left to do."""

    def on_wait() -> bool:
        waits = bool(cfg.runner.on_locked == "wait")
        what = "waiting for its result" if waits else "skipped for now"
        ranks.say(f"another process computes {folder.path}: {what} (runner.on_locked={cfg.runner.on_locked})")
        return waits

    held = stack.enter_context(locked(cfg.results_dir, folder.hash, on_wait))
    return held, _finished(cfg, folder, env)


def _finished(cfg: DictConfig, folder: RunFolder, env: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """The summary of a finished run that answers what is asked, under the conditions that are asked for."""
    summary = None if cfg.force else folder.finished()
    if summary is None or not _answers(cfg, folder, summary, env):
        return None
    if env is None:
        print(f"finished already, skipped: {folder.path} (force=true runs it again)", flush=True)
    return {**folder.list_preset(summary, cfg.experiment), "skipped": True}


def resolve(cfg: DictConfig) -> DictConfig:
    """A resolved copy of a composed config, checked for what Hydra lets pass."""
    cfg = plain_copy(cfg)
    known = RunConfig.__dataclass_fields__
    for key in cfg:
        if key not in known:
            raise ConfigError(unknown("setting", str(key), known))
    for key in ("batch", "max_new_tokens"):
        if cfg[key] < 1:
            raise ConfigError(f"{key}={cfg[key]}: it must be at least 1")
    fill_from_folder(cfg.pair)
    if cfg.weights == "random" and cfg.data.num_prompts is None:
        cfg.data.num_prompts = RANDOM_WEIGHTS_PROMPTS
    check_runner(cfg)
    check_serving(cfg)
    check_chosen(cfg.drafter)
    _refuse_incorrect(cfg)
    _check_sampling(cfg)
    if cfg.strict and not (cfg.reference and has_reference(cfg)):
        raise ConfigError("strict=true needs a reference to hold the output against: set reference=true, temperature=0")
    return cfg


def _refuse_incorrect(cfg: DictConfig) -> None:
    """Plug-ins that are kept with their published defects run only where that is asked for."""
    chosen = [(group, cfg[group].name) for group in PLUGIN_GROUPS]
    wrong = [f"{group}={name}" for group, name in chosen if lookup(group, name).known_incorrect]
    if wrong and not cfg.allow_incorrect:
        raise ConfigError(f"{', '.join(wrong)}: known to be incorrect, kept as published; set allow_incorrect=true")


def _check_sampling(cfg: DictConfig) -> None:
    """Settings that do not go together, before anything is loaded."""
    sampling_params(cfg)
    if cfg.stop_strings is not None and not all(cfg.stop_strings):
        raise ConfigError("stop_strings: an empty string would stop every row at once; leave it out")
    check_stop_strings(cfg.stop_strings or ())
    if lookup("verifier", cfg.verifier.name).lossy and not cfg.allow_lossy:
        raise ConfigError(f"verifier={cfg.verifier.name} is lossy: its output is biased; set allow_lossy=true")
    if cfg.temperature > 0 and cfg.verifier.name == "greedy":
        raise ConfigError(
            f"temperature={cfg.temperature} with verifier=greedy: set verifier=rejection|block (or naive), "
            "or temperature=0"
        )
    if cfg.drafter.name == "scripted":
        if not cfg.reference:
            raise ConfigError("drafter=scripted replays the reference outputs: set reference=true")
        if not follows_plain(cfg):
            raise ConfigError(
                f"drafter=scripted with temperature={cfg.temperature}: only verifier=naive emits the outputs it replays"
            )


def failed_point(cfg: DictConfig, overrides: list[str], message: str) -> dict[str, Any]:
    """A failed record: it says what failed and why, and claims no figure."""
    return {**_record(plain_copy(cfg), overrides), "status": "failed", "error": message}


def _record(cfg: DictConfig, overrides: list[str]) -> dict[str, Any]:
    return {"overrides": overrides, "pair": cfg.pair.name, "scheduler": cfg.scheduler.label, "batch": cfg.batch}


def _answers(cfg: DictConfig, folder: RunFolder, summary: dict[str, Any], env: dict[str, Any] | None) -> bool:
    """Whether a finished run holds what is asked for now, of the inputs as they are now."""
    from specdec.config.identity import signature

    if cfg.reference and has_reference(cfg) and summary.get("reference") is None:
        return False
    if cfg.baseline and summary.get("speedup_vs_ar") is None:
        return False
    path = folder.path / "env.json"
    recorded = json.loads(path.read_text()) if path.exists() else {}
    if env is not None and any(recorded.get(name) != env[name] for name in CODE_AND_MACHINE):
        return False
    return bool(recorded.get("inputs") == signature(cfg))
