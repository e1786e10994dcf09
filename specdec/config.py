"""Structured configs of a run, and the declaration of every built-in plug-in. Imports no torch.

A field's comment is its documentation: `docs/` and `--help` are made from here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from specdec.registry import register


@dataclass
class SyntheticConfig:
    """Shape and dial of the pair made without training (`weights=synthetic`)."""

    draft_layers: int = 2  # the draft is the target's first layers, embeddings and head
    residual_scale: float = 0.1  # the dial: how much the target's other layers may say; 0 accepts everything


@dataclass
class PairConfig:
    """A target, a draft and a tokenizer: Hub names or local folders in Hub format."""

    name: str = MISSING
    target: str | None = None  # Hub name or local folder
    draft: str | None = None  # Hub name or local folder
    tokenizer: str | None = None  # Hub name or local folder; null means the target's
    trust_remote_code: bool = False  # never run code that comes with a checkpoint, unless you say so
    allow_pickle: bool = False  # read .bin weights (restricted unpickling) where a checkpoint has no safetensors
    attention: str = "sdpa"  # transformers attention implementation: sdpa or eager
    num_layers: int | None = None  # random weights: layers of the target (the draft keeps at most as many)
    hidden_size: int | None = None  # random weights: width of the target; heads and MLP are scaled with it
    vocab_size: int | None = None  # random weights: vocabulary of both models
    target_architecture: dict[str, Any] | None = None  # config.json as a dict, for weights=random
    draft_architecture: dict[str, Any] | None = None
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)


@dataclass
class DataConfig:
    """Prompts in Spec-Bench's schema: question_id, category, turns."""

    name: str = MISSING
    path: str | None = None  # local JSONL file, or a URL or Hub name that `datasets` reads; asset:NAME ships with us
    split: str = "train"  # for Hub datasets
    turns: str = "first"  # first: one prompt per question; all: every turn is a prompt of its own
    num_prompts: int | None = None  # null means all
    category: list[str] | None = None  # keep only these categories
    max_input_tokens: int | None = None  # null means: context length minus max_new_tokens
    overlong: str = "refuse"  # a longer prompt: refuse (stop), truncate (keep its first tokens), skip
    empty: str = "refuse"  # a prompt without tokens: refuse or skip
    broken: str = "refuse"  # a line that is not valid: refuse or skip
    shuffle: bool = False
    seed: int = 0  # of the shuffle
    chat_template: str = "auto"  # auto: if the tokenizer has one; always; never


@dataclass
class RunnerConfig:
    """Where and how the models run."""

    device: str = "auto"  # auto, cpu, cuda, cuda:1, ...
    dtype: str = "float32"  # float32, float64, bfloat16, float16
    threads: int | None = None  # CPU threads of torch; null leaves torch's choice


@dataclass
class DebugConfig:
    """Checks and shortcuts for development."""

    name: str = "none"


@dataclass
class RunConfig:
    """One point: everything that decides what is computed."""

    pair: PairConfig = field(default_factory=PairConfig)
    data: DataConfig = field(default_factory=DataConfig)
    scheduler: Any = MISSING
    batching: Any = MISSING
    alignment: Any = MISSING
    drafter: Any = MISSING
    verifier: Any = MISSING
    draft_length: Any = MISSING
    logger: Any = MISSING
    runner: RunnerConfig = field(default_factory=RunnerConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)

    weights: str = "pretrained"  # pretrained; random (same architecture, no download); synthetic (with a dial)
    batch: int = 4  # rows per round
    gamma: int = 5  # drafted tokens per row and round, for the policies that take it
    max_new_tokens: int = 64
    stop_tokens: list[int] | None = None  # null: the model's own end-of-text tokens; []: none
    seed: int = 0  # of random weights and of sampling
    reference: bool = True  # compare with greedy decoding of the target alone at batch 1 (cached on disk)
    baseline: bool = True  # measure plain decoding under the same scheduler too, for speedup_vs_ar
    warmup: bool = True  # decode a few tokens before the clock starts
    results_dir: str = "results"
    force: bool = False  # run again although a finished result exists
    progress: bool = True  # a progress bar, where stdout is a terminal


NOT_IDENTITY = ("logger", "results_dir", "force", "progress", "debug", "reference", "baseline")
"""Top-level settings that do not change what is computed, so they do not enter a run's hash."""


# --- schedulers -------------------------------------------------------------------------------------------------


@register("scheduler", "static", target="specdec.schedulers.static:StaticScheduler")
@dataclass
class StaticConfig:
    """A batch runs until its last row ends; finished rows leave it at once."""

    label: str = "${.name}"  # how tables call it; presets such as eqspec set their own


@register("scheduler", "exspec", target="specdec.schedulers.exspec:ExspecScheduler")
@dataclass
class ExspecConfig:
    """Sliding window over a pool: rows of equal length run together, otherwise any rows realigned."""

    label: str = "${.name}"


# --- batching policies ------------------------------------------------------------------------------------------


@register("batching", "fifo", target="specdec.schedulers.order:Fifo")
@dataclass
class FifoConfig:
    """Prompts in the order they come."""

    window: int = 48  # rows in flight that exspec may group (at least the batch size)


@register("batching", "sorted", target="specdec.schedulers.order:Sorted")
@dataclass
class SortedConfig:
    """Shortest prompts first; ties in the order they come."""

    window: int = 48


@register("batching", "bucketed", target="specdec.schedulers.order:Bucketed")
@dataclass
class BucketedConfig:
    """Prompts gathered by length bucket, buckets from short to long, in order within a bucket."""

    window: int = 48
    bucket_tokens: int = 32  # width of a bucket


# --- alignment, drafting, verification --------------------------------------------------------------------------


@register("alignment", "eqspec", target="specdec.alignment.eqspec:EqspecAlignment")
@dataclass
class EqspecConfig:
    """The reference: left padding, and unpad, append, repad after every round."""


@register("drafter", "model", target="specdec.drafters.model:ModelDrafter")
@dataclass
class ModelDrafterConfig:
    """The pair's draft model, with a KV cache that is aligned like the target's."""


@register("drafter", "none", target="specdec.drafters.none:NoDrafter")
@dataclass
class NoDrafterConfig:
    """No drafting: plain decoding, one token per row and round."""


@register("verifier", "greedy", target="specdec.verifiers.greedy:GreedyVerifier")
@dataclass
class GreedyConfig:
    """Longest match with the target's argmax; exact for temperature 0."""


@register("draft_length", "fixed", target="specdec.draft_lengths.fixed:FixedLength")
@dataclass
class FixedLengthConfig:
    """The same draft length in every round."""

    gamma: int = "${gamma}"  # type: ignore[assignment]


# --- loggers ----------------------------------------------------------------------------------------------------


@register("logger", "none", target="specdec.loggers.none:NoLogger")
@dataclass
class NoLoggerConfig:
    """Nothing beyond the run folder."""


@register("logger", "csv", target="specdec.loggers.csv:CsvLogger")
@dataclass
class CsvLoggerConfig:
    """One row per finished point, appended to a CSV file."""

    path: str = "${results_dir}/points.csv"


@register("logger", "wandb", target="specdec.loggers.wandb:WandbLogger")
@dataclass
class WandbConfig:
    """A Weights & Biases run per point; offline unless told otherwise."""

    project: str = "specdec"
    group: str | None = None
    mode: str = "offline"  # offline, online, disabled
    directory: str = "${results_dir}"


ConfigStore.instance().store(name="run_schema", node=RunConfig, provider="specdec.config")
