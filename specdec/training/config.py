"""Structured configuration of a training recipe; no torch import, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class CorpusConfig:
    """Which files are read, and which of them are held out."""

    root: str | None = None  # None: the standard library of the running Python
    exclude: list[str] = field(default_factory=list)  # path prefixes below root
    min_bytes: int = 300
    max_bytes: int = 400_000
    max_digit_share: float = 0.2  # above it a file is a table, not a program
    heldout_percent: int = 4  # by a stable hash of the path: the same files on every machine
    max_files: int | None = None  # rehearsals only: the first so many


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

    steps: int = 1000
    minutes: float = 30.0
    lr: float = 2e-3
    min_lr_share: float = 0.05
    warmup_steps: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    phases: list[PhaseConfig] = field(default_factory=lambda: [PhaseConfig()])
    checkpoint_every: int = 100


@dataclass
class GreedyConfig:
    """The target's own greedy outputs, on which the draft is distilled."""

    minutes: float = 10.0
    num_batches: int = 80
    batch: int = 64
    new_tokens: int = 128
    min_prompt_tokens: int = 8
    max_prompt_tokens: int = 320
    prose_share: float = 0.25  # prompts cut from docstrings and comments
    top_k: int = 16  # target log-probabilities kept per token for the soft loss


@dataclass
class DistillConfig:
    """Draft stages: `warm` on corpus text under the target's distribution, `final` on its greedy outputs."""

    warm: StageConfig = field(default_factory=StageConfig)
    final: StageConfig = field(default_factory=StageConfig)
    soft_weight: float = 0.5  # weight of the forward KL; the rest is cross-entropy on the greedy token


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
    num_prompts: int | None = None  # None: all
    step_repeats: int = 100


@dataclass
class TrainConfig:
    """Everything `python train.py` can be told."""

    pair: Any = "tiny"
    seed: int = 1234
    threads: int | None = None  # None: what torch chooses
    force: bool = False  # redo finished stages
    stages: list[str] | None = None  # only these stages, and no export; None: all
    rehearse: bool = False  # all stages at minimal size, under a minute
    progress: bool = True
    output_dir: str = "outputs/train/tiny"
    export_dir: str | None = None  # None: <output_dir>/export
    vocab_size: int = 2048
    context_length: int = 2048
    precision: str = "bf16-mixed"
    max_export_bytes: int = 12_000_000
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    target_model: ModelConfig = field(default_factory=ModelConfig)
    draft_model: ModelConfig = field(default_factory=lambda: ModelConfig(num_layers=2))
    target: StageConfig = field(default_factory=StageConfig)
    greedy: GreedyConfig = field(default_factory=GreedyConfig)
    draft: DistillConfig = field(default_factory=DistillConfig)
    heldout: HeldoutConfig = field(default_factory=HeldoutConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)


def register_schema() -> None:
    """Make `TrainConfig` the schema that conf/train.yaml is checked against."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="train_schema", node=TrainConfig)


def selected_pair(cfg: Any) -> str:
    """Name of the pair: the chosen option where `pair` is a config group, else the plain value."""
    from hydra.core.hydra_config import HydraConfig

    choice = HydraConfig.get().runtime.choices.get("pair") if HydraConfig.initialized() else None
    return str(choice or cfg.pair)


def to_dataclass(cfg: Any) -> TrainConfig:
    """Resolve a Hydra config and apply `rehearse`."""
    from omegaconf import OmegaConf

    resolved = OmegaConf.to_object(cfg)
    assert isinstance(resolved, TrainConfig)
    return shrink_to_rehearse(resolved) if resolved.rehearse else resolved


def shrink_to_rehearse(cfg: TrainConfig) -> TrainConfig:
    """The same stages at the smallest sizes that still exercise every line."""
    tiny = ModelConfig(num_layers=2, hidden_size=64, intermediate_size=96, num_heads=4, num_kv_heads=2)
    cfg.target_model, cfg.draft_model = tiny, ModelConfig(1, 64, 96, 4, 2)
    cfg.corpus.max_files, cfg.vocab_size = 120, 512
    for stage in (cfg.target, cfg.draft.warm, cfg.draft.final):
        stage.steps, stage.warmup_steps, stage.checkpoint_every = 8, 2, 4
        stage.phases = [PhaseConfig(0.7, 64, 4), PhaseConfig(0.3, 128, 2)]
    cfg.greedy = GreedyConfig(minutes=1, num_batches=3, batch=4, new_tokens=12, max_prompt_tokens=48)
    cfg.heldout.num_prompts = 16
    cfg.measure = MeasureConfig(new_tokens=12, num_prompts=4, step_repeats=3)
    return cfg
