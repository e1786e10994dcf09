"""Structured configs of training. Imports no torch, so that `--help` answers at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from specdec.core.settings import setting
from specdec.training.corpus_config import CorpusConfig, QuestionsConfig
from specdec.training.selector_config import SelectorConfig

LINE_EVERY_S = 30.0  # from one line of progress to the next, without a terminal


@dataclass
class ModelConfig:
    """Shape of a Llama model; vocabulary and context length are the pair's, not the model's."""

    num_layers: int = 12
    hidden_size: int = 192
    intermediate_size: int = 448
    num_heads: int = 6
    num_kv_heads: int = 2


@dataclass
class DraftConfig:
    """Shape of a draft model; everything else is its target's."""

    num_layers: int = 2
    hidden_size: int | None = setting(None, "null, here and below: as the target's")
    intermediate_size: int | None = None
    num_heads: int | None = None
    num_kv_heads: int | None = None


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
    cut_loops: bool = setting(False, "learn from an output only up to where it begins to repeat itself")
    num_batches: int = 80
    batch: int = 64
    new_tokens: int = 128
    min_prompt_tokens: int = 8
    max_prompt_tokens: int = 320
    prose_share: float = setting(0.25, "share of prompts cut from docstrings and comments")
    top_k: int = setting(
        16, "target log-probabilities kept per token, for drafts; 0: none, and the target is asked again (as heads do)"
    )


@dataclass
class UnloopConfig:
    """Rounds in which the built-in target unlearns the loops of its own greedy outputs, for `task=pair`."""

    rounds: int = setting(0, "each with new outputs; 0: none")
    num_batches: int = setting(4, "outputs of a round, of greedy.batch rows")
    weight: float = setting(1.0, "of the unlikelihood of repeated tokens, beside the loss of the text")
    fit: StageConfig = field(
        default_factory=lambda: StageConfig(steps=40, lr=5e-4, warmup_steps=5, phases=[PhaseConfig(batch=8)])
    )


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
    """What a draft or heads learn from, for `task=distill` and `task=heads`. Weights of losses need not sum to 1."""

    data: str = setting("outputs", "outputs (the target's own, generated once and cached) or corpus (its text)")
    on_policy: float = setting(
        0.0, "task=distill: share of batches whose tokens the current draft samples, scored by the target"
    )
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

    kind: str = setting(
        "medusa", "medusa, eagle, eagle3, peagle, specblock, dflash, dspark, longspec, ppd or early_exit"
    )
    num_heads: int = setting(
        4,
        "medusa: heads; ppd: prompt tokens; eagle, eagle3: unrolled steps; peagle, dflash, dspark: drafted tokens; "
        "specblock: tokens of a block; longspec: newest tokens whose target keys may be missing",
    )
    layer: int = setting(2, "early_exit: layers of the target before the exit")
    layer_ids: list[int] | None = setting(
        None,
        "eagle3, blocks: layers of the target whose inputs are read (their number: the last output); None: 2, n/2, n-3",
    )
    num_layers: int = setting(1, "peagle, specblock, dflash, dspark (blocks, here and below): decoder layers")
    num_anchors: int = setting(48, "blocks: how many per row, at tokens drawn anew for every batch")
    draft_vocab: int | None = setting(
        None,
        "eagle3 and blocks: tokens that the head can draft, the most frequent in the training data; None: all",
    )
    cache_hidden: bool = setting(False, "keep the target's hidden states of all outputs on disk, shared by recipes")
    markov_rank: int = setting(32, "dspark: width of the bias by the token before; 0: none")
    confidence_weight: float = setting(1.0, "dspark: weight of the confidences' cross-entropy")
    decay: float = setting(0.8, "weight of the i-th head, unrolled step or slot of a block: decay ** i")
    feature_weight: float = setting(0.1, "eagle: weight of the smooth L1 loss on the target's next hidden state")
    window: int = setting(512, "longspec: tokens that its self-attention sees, and so its own cache")
    max_offset: int | None = setting(
        None, "longspec: positions are moved by up to this, all but the first few; None: up to the target's context"
    )
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

    accelerator: str = setting("auto", "auto (a GPU, or the CPU without one), cpu, gpu; the frozen target is there too")
    devices: int = setting(1, "per machine")
    num_nodes: int = setting(1, "machines; torchrun or srun starts the processes on each")
    strategy: str = setting("auto", "with several devices: ddp, or fsdp (weights and optimizer in parts; lm, distill)")
    tensor_parallel: bool = setting(False, "split the frozen target over the processes of torchrun (distill, heads)")


@dataclass
class TrainConfig:
    """All settings of `python train.py`."""

    task: str = setting("pair", "pair (the whole recipe of a built-in pair), lm, distill, heads, selector")
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
    gradient_checkpointing: bool = setting(False, "compute layers and losses again in backward, to hold less")
    max_export_bytes: int = 12_000_000
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    questions: QuestionsConfig = field(default_factory=QuestionsConfig)
    target_model: ModelConfig = field(default_factory=ModelConfig)
    draft_model: DraftConfig = field(default_factory=DraftConfig)
    frozen: str = setting("asset:tiny/target", "task=distill, heads: the target, a folder or a Hub name")
    frozen_dtype: str = setting(
        "auto",
        "its number format: float32, bfloat16, float16, float64; auto: on a GPU that of the precision's products, "
        "on a CPU float32 under a mixed precision",
    )
    tokenizer: str | None = setting(None, "folder or Hub name; None: task=lm trains one, the others take the target's")
    start: str | None = setting(
        None, "task=lm, distill: a folder of weights to start from; pair: the target as task=lm left it; None: new ones"
    )
    new_draft: str = setting(
        "target", "task=distill without start: target (copies of its evenly spaced layers) or random"
    )
    fit: StageConfig = field(default_factory=StageConfig)
    distill: LossConfig = field(default_factory=LossConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    selector: SelectorConfig = field(default_factory=SelectorConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    keep: str = setting("best", "which weights are exported: best (by acceptance) or last")
    log: LogConfig = field(default_factory=LogConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    target: StageConfig = field(default_factory=StageConfig)
    unloop: UnloopConfig = field(default_factory=UnloopConfig)
    greedy: OutputsConfig = field(default_factory=OutputsConfig)
    draft: DistillConfig = field(default_factory=DistillConfig)
    heldout: HeldoutConfig = field(default_factory=HeldoutConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
