"""Structured configs of training. Imports no torch, so that `--help` answers at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import specdec.config.labels  # noqa: F401  (declares ${pair_name:...}, which the presets of pairs use)
from specdec.core.settings import setting


@dataclass
class CorpusConfig:
    """Which texts are read, and which of them are held out."""

    source: str = setting(
        "python", "python (sources below root), text, jsonl, parquet (local files), hub (a data set's name)"
    )
    root: str | None = setting(None, "python: the folder; None: the running Python's standard library")
    path: str | None = setting(None, "text, jsonl, parquet: file, folder or pattern; hub: the name")
    column: str = setting("text", "jsonl, parquet, hub: the column that holds the text")
    split: str = setting("train", "hub: the split")
    exclude: list[str] = setting(list, "path prefixes below root")
    min_bytes: int = 300
    max_bytes: int = 400_000
    max_digit_share: float = setting(0.2, "share of digits above which a file is a table, not a program")
    heldout_percent: int = setting(4, "chosen by a hash of the path: the same files on every machine")
    max_files: int | None = setting(None, "rehearsals: at most this many training files")


@dataclass
class ModelConfig:
    """Shape of a Llama model; vocabulary and context length are the pair's, not the model's."""

    num_layers: int = 12
    hidden_size: int = 192
    intermediate_size: int = 448
    num_heads: int = 6
    num_kv_heads: int = 2


@dataclass
class PhaseConfig:
    """A share of a stage's budget spent on blocks of one length."""

    share: float = 1.0
    block: int = 256
    batch: int = 16


@dataclass
class StageConfig:
    """Budget and optimizer of one training stage; it ends at `steps` or `minutes`, whichever comes first."""

    steps: int = setting(1000, "optimizer steps")
    minutes: float | None = setting(
        None, "None: no limit; a resumed run then ends with the same bits as an uninterrupted one"
    )
    accumulate: int = setting(1, "batches per optimizer step")
    lr: float = 2e-3
    schedule: str = setting("cosine", "cosine, linear or constant, after the warmup")
    min_lr_share: float = 0.05
    warmup_steps: int = 100
    ema: float | None = setting(None, "decay of an average of the weights, which is then measured and exported")
    weight_decay: float = 0.1
    clip: float = 1.0
    phases: list[PhaseConfig] = field(default_factory=lambda: [PhaseConfig()])
    checkpoint_every: int = 100


@dataclass
class OutputsConfig:
    """The target's own outputs, on which the draft is distilled."""

    minutes: float | None = 10.0
    temperature: float = setting(0.0, "0: greedy outputs; above: sampled ones")
    num_batches: int = 80
    batch: int = 64
    new_tokens: int = 128
    min_prompt_tokens: int = 8
    max_prompt_tokens: int = 320
    prose_share: float = setting(0.25, "share of prompts cut from docstrings and comments")
    top_k: int = setting(16, "target log-probabilities kept per token for the soft loss")


@dataclass
class DistillConfig:
    """Draft stages: `warm` on corpus text under the target's distribution, `final` on its greedy outputs."""

    warm: StageConfig = field(default_factory=StageConfig)
    final: StageConfig = field(default_factory=StageConfig)
    soft_weight: float = setting(0.5, "weight of the forward KL; the rest is cross-entropy on the greedy token")


@dataclass
class HeldoutConfig:
    """Prompts cut from held-out files."""

    num_prompts: int = 96
    min_tokens: int = 10
    max_tokens: int = 400


@dataclass
class MeasureConfig:
    """Acceptance of the exported pair at batch 1, and step times on one thread."""

    gamma: int = 5
    new_tokens: int = 64
    num_prompts: int | None = setting(None, "None: all")
    step_repeats: int = 100


@dataclass
class LossConfig:
    """What a draft learns from, for `task=distill`. The weights of the losses need not sum to 1."""

    data: str = setting("outputs", "outputs (the target's own, generated once and cached) or corpus (its text)")
    on_policy: float = setting(0.0, "share of batches whose tokens the current draft samples, scored by the target")
    on_policy_tokens: int = setting(64, "tokens sampled per prompt")
    temperature: float = setting(1.0, "of both distributions, in the soft losses")
    ce: float = setting(0.0, "cross-entropy on the text's own next token")
    argmax: float = setting(0.5, "cross-entropy on the target's greedy choice")
    forward_kl: float = setting(0.5, "KL(target || draft)")
    reverse_kl: float = setting(0.0, "KL(draft || target)")
    tv: float = setting(0.0, "total variation: 1 - the chance that rejection sampling accepts")
    count_prompt: bool = setting(False, "outputs: learn from the prompt's tokens too")


@dataclass
class HeadsConfig:
    """What is trained beside a frozen target, for `task=heads`."""

    kind: str = setting("medusa", "medusa, eagle, ppd or early_exit")
    num_heads: int = setting(4, "medusa: heads; ppd: prompt tokens; eagle: unrolled training steps")
    layer: int = setting(2, "early_exit: layers of the target before the exit")
    decay: float = setting(0.8, "weight of the i-th head or unrolled step: decay ** i")
    feature_weight: float = setting(0.1, "eagle: weight of the smooth L1 loss on the target's next hidden state")
    num_insertions: int = setting(32, "ppd: positions per row where prompt tokens are inserted")


@dataclass
class ValidationConfig:
    """Acceptance on held-out prompts, measured by the engine during training."""

    every: int = setting(200, "optimizer steps between two measurements; 0: only at the end")
    num_prompts: int = 24
    new_tokens: int = 48
    gamma: int = 5
    batch: int = 8
    patience: int | None = setting(None, "stop after this many measurements without a better one; None: never")


@dataclass
class LogConfig:
    """Where the figures of a fit go, beside metrics.csv in its folder."""

    every: int = setting(10, "optimizer steps between two lines")
    wandb: str = setting("disabled", "disabled, offline or online")
    project: str = "specdec-training"


@dataclass
class DeviceConfig:
    """What `lightning.Trainer` runs on."""

    accelerator: str = setting("auto", "auto, cpu, gpu")
    devices: int = 1
    strategy: str = setting("auto", "with more than one device: ddp, ...")


@dataclass
class TrainConfig:
    """All settings of `python train.py`."""

    task: str = setting("pair", "pair (the whole recipe of a built-in pair), lm, distill, heads")
    pair: Any = "tiny"
    seed: int = 1234
    threads: int | None = setting(None, "None: what torch chooses")
    force: bool = setting(False, "redo finished stages")
    stages: list[str] | None = setting(None, "task=pair: only these stages, and no export; None: all")
    rehearse: bool = setting(False, "all stages at minimal size, under a minute")
    progress: bool = True
    output_dir: str | None = setting(None, "None: outputs/train/<pair, task or heads.kind>, others for rehearsals")
    export_dir: str | None = setting(None, "None: <output_dir>/export; specdec/assets/tiny replaces the shipped pair")
    vocab_size: int = 2048
    context_length: int = 2048
    precision: str = setting(
        "auto", "Lightning's names; auto: bf16-mixed if the device computes in bfloat16, else 32-true"
    )
    max_export_bytes: int = 12_000_000
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    target_model: ModelConfig = field(default_factory=ModelConfig)
    draft_model: ModelConfig = field(default_factory=lambda: ModelConfig(num_layers=2))
    frozen: str = setting("asset:tiny/target", "task=distill, heads: the target, a folder or a Hub name")
    tokenizer: str | None = setting(None, "folder or Hub name; None: task=lm trains one, the others take the target's")
    start: str | None = setting(None, "task=lm, distill: a folder of weights to start from; None: new ones")
    new_draft: str = setting(
        "target", "task=distill without start: from the target's layers, if the widths match, or random"
    )
    fit: StageConfig = field(default_factory=StageConfig)
    distill: LossConfig = field(default_factory=LossConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    keep: str = setting("best", "which weights are exported: best (by acceptance) or last")
    log: LogConfig = field(default_factory=LogConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    target: StageConfig = field(default_factory=StageConfig)
    greedy: OutputsConfig = field(default_factory=OutputsConfig)
    draft: DistillConfig = field(default_factory=DistillConfig)
    heldout: HeldoutConfig = field(default_factory=HeldoutConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)


_NOT_DECIDING = {
    "device",
    "force",
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
    cfg.target_model, cfg.draft_model = tiny, ModelConfig(1, 64, 96, 4, 2)
    cfg.corpus.max_files, cfg.vocab_size = 120, 512
    for stage in (cfg.target, cfg.draft.warm, cfg.draft.final, cfg.fit):
        stage.steps, stage.warmup_steps, stage.checkpoint_every = 8, 2, 4
        stage.phases = [PhaseConfig(0.7, 64, 4), PhaseConfig(0.3, 128, 2)]
    cfg.greedy = OutputsConfig(minutes=1, num_batches=3, batch=4, new_tokens=12, max_prompt_tokens=48)
    cfg.heldout.num_prompts = 16
    cfg.measure = MeasureConfig(new_tokens=12, num_prompts=4, step_repeats=3)
    cfg.validation = ValidationConfig(every=4, num_prompts=2, new_tokens=8, gamma=2, batch=2)
    cfg.heads.num_heads, cfg.distill.on_policy_tokens = 2, 8
    return cfg


def output_folder(cfg: TrainConfig) -> Path:
    """The folder of a run's stages: by default one for each pair, task or kind of heads, others for rehearsals."""
    name = {"pair": cfg.pair, "heads": cfg.heads.kind}.get(cfg.task, cfg.task)
    return Path(cfg.output_dir or f"outputs/train/{name}{'-rehearsal' if cfg.rehearse else ''}")


def deciding(cfg: TrainConfig) -> dict[str, Any]:
    """The settings that decide results."""
    return {key: value for key, value in asdict(cfg).items() if key not in _NOT_DECIDING}
