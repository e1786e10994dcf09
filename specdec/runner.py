"""One point of a sweep: skip it if it is finished, otherwise decode, compare, measure and write it down.

Torch is imported only once a point really has to be computed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from specdec.config import RunConfig
from specdec.errors import ConfigError
from specdec.reference import follows_plain, has_reference, sampling_params
from specdec.registry import PLUGIN_GROUPS, lookup, unknown
from specdec.results import RunFolder, identity, plain_copy


def run_point(cfg: DictConfig, overrides: list[str]) -> dict[str, Any]:
    """Run one composed config; returns its summary (of the finished run on disk, where there is one)."""
    cfg = resolve(cfg)
    folder = RunFolder(cfg.results_dir, identity(cfg))
    summary = None if cfg.force else folder.finished()
    if summary is not None and _answers(cfg, summary):
        print(f"finished already, skipped: {folder.path} (force=true runs it again)", flush=True)
        return {**summary, "skipped": True}
    from specdec.point import compute_point

    return compute_point(cfg, folder, overrides)


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
    cfg = plain_copy(cfg)
    return {
        "status": "failed",
        "error": message,
        "overrides": overrides,
        "pair": cfg.pair.name,
        "scheduler": cfg.scheduler.label,
        "batch": cfg.batch,
    }


def _answers(cfg: DictConfig, summary: dict[str, Any]) -> bool:
    """Whether a finished run holds what is asked for now, of the inputs as they are now."""
    from specdec.inputs import signature

    if cfg.reference and has_reference(cfg) and summary.get("reference") is None:
        return False
    if cfg.baseline and cfg.drafter.name != "none" and summary.get("speedup_vs_ar") is None:
        return False
    env = Path(cfg.results_dir) / str(summary["hash"]) / "env.json"
    recorded = json.loads(env.read_text()).get("inputs") if env.exists() else None
    return bool(recorded == signature(cfg))
