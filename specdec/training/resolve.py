"""From a composed Hydra config to the settings of a training run; its folder, and what decides its results."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import specdec.config.labels  # noqa: F401  (declares ${pair_name:...}, which the presets of pairs use)
from specdec.training.config import (
    DraftConfig,
    MeasureConfig,
    ModelConfig,
    OutputsConfig,
    PhaseConfig,
    StageConfig,
    TrainConfig,
    UnloopConfig,
    ValidationConfig,
)

_NOT_DECIDING = {
    "device",
    "force",
    "gradient_checkpointing",
    "log",
    "progress",
    "stages",
    "threads",
    "output_dir",
    "export_dir",
    "max_export_bytes",
}
"""Settings that do not decide results."""


def register_schema() -> None:
    """Make `TrainConfig` the schema that conf/train.yaml is checked against."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="train_schema", node=TrainConfig)


def selected_pair(cfg: Any) -> str:
    """Name of the pair: its option if `pair` was given as a config group, even an unknown one, otherwise its value."""
    from hydra.core.hydra_config import HydraConfig

    choice = HydraConfig.get().runtime.choices.get("pair") if HydraConfig.initialized() else None
    return str(choice or (cfg.pair if isinstance(cfg.pair, str) else cfg.pair.name))


def to_dataclass(cfg: Any) -> TrainConfig:
    """Resolve a Hydra config and apply `rehearse`."""
    from omegaconf import OmegaConf

    resolved = OmegaConf.to_object(cfg)
    assert isinstance(resolved, TrainConfig)
    resolved.pair = selected_pair(cfg)
    return shrink_to_rehearse(resolved) if resolved.rehearse else resolved


def shrink_to_rehearse(cfg: TrainConfig) -> TrainConfig:
    """The same stages at the smallest sizes that still run every line."""
    tiny = ModelConfig(num_layers=2, hidden_size=64, intermediate_size=96, num_heads=4, num_kv_heads=2)
    cfg.target_model, cfg.draft_model = tiny, DraftConfig(num_layers=1)
    cfg.corpus.max_files, cfg.vocab_size = 120, 512
    for stage in (cfg.target, cfg.draft.warm, cfg.draft.final, cfg.fit):
        stage.steps, stage.warmup_steps, stage.checkpoint_every = 8, 2, 4
        stage.phases = [PhaseConfig(0.7, 64, 4), PhaseConfig(0.3, 128, 2)]
    once = StageConfig(steps=4, warmup_steps=2, checkpoint_every=2, phases=[PhaseConfig(1.0, 64, 4)])
    cfg.unloop = UnloopConfig(rounds=1, num_batches=2, fit=once)
    cfg.greedy = OutputsConfig(minutes=1, num_batches=3, batch=4, new_tokens=12, max_prompt_tokens=48)
    cfg.heldout.num_prompts = 16
    cfg.measure = MeasureConfig(new_tokens=12, num_prompts=4, step_repeats=3)
    cfg.validation = ValidationConfig(every=4, num_prompts=2, new_tokens=8, gamma=2, batch=2)
    cfg.heads.num_heads, cfg.distill.on_policy_tokens = 2, 8
    some = cfg.selector
    some.temperatures, some.num_paths, some.depth, some.samples, some.batches = some.temperatures[:1], 2, 2, 1, [1, 2]
    some.num_batches, some.rows, some.new_tokens, some.every, some.steps = 2, 4, 8, 4, 8
    return cfg


def output_folder(cfg: TrainConfig) -> Path:
    """The folder of a run's stages: by default one for each pair, task or kind of heads, others for rehearsals."""
    name = {"pair": cfg.pair, "heads": cfg.heads.kind}.get(cfg.task, cfg.task)
    return Path(cfg.output_dir or f"outputs/train/{name}{'-rehearsal' if cfg.rehearse else ''}")


def deciding(cfg: TrainConfig) -> dict[str, Any]:
    """The settings that decide results."""
    return {key: value for key, value in asdict(cfg).items() if key not in _NOT_DECIDING}
