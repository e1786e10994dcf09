"""Structured configs of a run. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from specdec.core.prompts import DataConfig
from specdec.core.settings import setting


@dataclass
class SyntheticConfig:
    """The pair made without training (`weights=synthetic`): its draft, and how often that is accepted."""

    draft_layers: int = setting(2, "the draft is the target's first layers, embeddings and head")
    residual_scale: float = setting(0.1, "scale of the residuals of the target's other layers; 0: all is accepted")


@dataclass
class PairConfig:
    """A target, a draft and a tokenizer: Hub names, local folders in Hub format, or GGUF files."""

    name: str = setting(MISSING, "name in tables: the preset's, or that of the checkpoints if others are given")
    folder: str | None = setting(
        None, "what train.py exported: fills target, draft and tokenizer; `pair=FOLDER` sets it"
    )
    target: str | None = setting(None, "Hub name, local folder, GGUF file, or fetched:NAME")
    draft: str | None = setting(None, "Hub name, local folder or GGUF file; null: the pair has none")
    tokenizer: str | None = setting(None, "Hub name, local folder or GGUF file; null means the target's")
    draft_tokenizer: str | None = setting(
        None, "for drafter=retokenize: Hub name or local folder; null means the draft's own"
    )
    trust_remote_code: bool = setting(False, "run the code that comes with a checkpoint")
    allow_pickle: bool = setting(
        False, "read .bin weights (restricted unpickling) where a checkpoint has no safetensors"
    )
    attention: str = setting("sdpa", "transformers attention implementation: sdpa or eager")
    weights: str = setting("pretrained", "default of `weights` for this pair")
    threads: int | None = setting(None, "CPU threads for this pair if runner.threads is null")
    num_layers: int | None = setting(None, "random weights: layers of the target (the draft keeps at most as many)")
    hidden_size: int | None = setting(None, "random weights: width of the target; heads and MLP are scaled with it")
    vocab_size: int | None = setting(None, "random weights: vocabulary of both models")
    target_architecture: dict[str, Any] | None = setting(None, "config.json as a dict, for weights=random")
    draft_architecture: dict[str, Any] | None = None
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)


@dataclass
class RunnerConfig:
    """Where and how the models run, and what happens when memory runs out or a point is locked."""

    accelerator: str = setting("auto", "auto (a GPU if there is one), cpu, cuda")
    devices: Any = setting(1, "processes of this run, one device each; or a list of GPUs, such as [2,3]")
    num_nodes: int = setting(1, "machines, each with `devices` processes; more than one needs torchrun or srun")
    strategy: str = setting(
        "auto", "how processes start: auto or ddp (spawned here, unless torchrun or srun did it), ddp_fork"
    )
    tensor_parallel: bool = setting(
        False, "split the target over the processes (transformers' tp_plan), not the prompts"
    )
    dtype: str = setting("float32", "float32, float64, bfloat16, float16")
    threads: int | None = setting(None, "CPU threads of torch, per process; null: pair.threads, or torch's default")
    prefill_chunk: int | None = setting(
        None, "tokens per row in a prefill forward, to bound its memory; null: whole prompts"
    )
    on_out_of_memory: str = setting("fail", "fail: the point fails; shrink: resume with half the batch, and say so")
    on_locked: str = setting("wait", "if another process is computing the point: wait for its result, or skip it")


@dataclass
class AdaptConfig:
    """When a drafter learns from the rows that it has served: online adaptation."""

    policy: str = setting(
        "none", "none; always: after every window; bandit: where the measured gain pays for the update's time"
    )
    arm: str | None = setting(None, "the only part of the drafter that is updated; null: always all, bandit what pays")
    rows: int = setting(8, "finished rows that an update learns from: a window")
    lr: float = setting(5e-4, "learning rate of an update")
    depth: int = setting(4, "drafted tokens in a row that it teaches, and that gains are measured with")
    max_tokens: int = setting(256, "last tokens of a row that it learns from")
    horizon: int | None = setting(
        None, "bandit: rows for which what is learned stays useful; null: as many as came since acceptance last fell"
    )
    trial_share: float = setting(0.05, "bandit: largest share of the time for updates that are not known to pay")


@dataclass
class DebugConfig:
    """Checks and shortcuts for development."""

    name: str = "none"
    invariants: bool = setting(False, "check every call of the alignment contract")
    invariants_every: int = setting(8, "compare logits and cache with fresh forwards in every n-th round")


@dataclass
class RunConfig:
    """One point: everything that decides what is computed."""

    pair: PairConfig = field(default_factory=PairConfig)
    data: DataConfig = field(default_factory=DataConfig)
    scheduler: Any = MISSING
    batching: Any = MISSING
    alignment: Any = MISSING
    drafter: Any = MISSING
    tree: Any = MISSING
    selector: Any = MISSING
    verifier: Any = MISSING
    draft_length: Any = MISSING
    budget: Any = MISSING
    arrivals: Any = MISSING
    logger: Any = MISSING
    runner: RunnerConfig = field(default_factory=RunnerConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)
    experiment: str | None = setting(None, "name of the preset, which the summary lists under `experiments`")

    weights: str = setting(
        "${pair.weights}", "pretrained; random (same architecture, no download); synthetic (with a chosen acceptance)"
    )
    execution: str = setting(
        "auto", "how forwards are computed: eager (transformers' own code), fused, native, compiled; auto: the fastest"
    )
    numerics: str = setting(
        "default", "invariant: a row's logits are the same bits in every batch, by padding to measured shapes"
    )
    batch: int = setting(4, "rows per round")
    gamma: int = setting(5, "drafted tokens per row and round, for draft-length policies that use it")
    max_new_tokens: int = 64
    stop_tokens: list[int] | None = setting(None, "null: the model's own end-of-text tokens; []: none")
    stop_strings: list[str] | None = setting(None, "strings that end a row when its output contains one")
    temperature: float = setting(0.0, "0: greedy; above: sampling, with verifier=rejection, block or naive")
    top_k: int | None = setting(None, "sample among the k most probable tokens; null: no limit")
    top_p: float = setting(1.0, "sample among the fewest tokens whose probabilities reach top_p")
    min_p: float = setting(0.0, "drop tokens less probable than min_p times the most probable one")
    repetition_penalty: float = setting(1.0, "above 1: tokens of the row so far become less probable, greedy or not")
    seed: int = setting(0, "seed of random weights and of sampling")
    reference: bool = setting(True, "compare with the outputs of the target alone at batch 1 (cached on disk)")
    baseline: bool = setting(True, "also measure scheduler=plain at the same batch size, for speedup_vs_ar")
    bound: bool = setting(
        False, "afterwards, time the same forwards without the loop: forward_bound_s, loop_efficiency"
    )
    warmup: bool = setting(True, "decode a few tokens before the clock starts")
    results_dir: str = "results"
    strict: bool = setting(False, "exit with an error if a divergence from the reference is not explained by rounding")
    allow_incorrect: bool = setting(False, "allow plug-ins that are known to be incorrect (bsp, dsd, lockstep)")
    allow_lossy: bool = setting(False, "allow verifiers that do not keep the target's distribution (typical)")
    repeat: int = setting(1, "take turns: the whole command this many times; speeds are medians, with intervals")
    turn: int = setting(0, "which of the turns of `repeat` this is; set by the command")
    force: bool = setting(False, "run again even if a finished result exists")
    show_text: bool = setting(False, "print the outputs of a point's first rows")
    progress: bool = setting(True, "show a progress bar if stderr is a terminal")


RANDOM_WEIGHTS_PROMPTS = 8
"""The default of data.num_prompts for weights=random, whose outputs are noise: enough to measure speed."""

NOT_IDENTITY = (
    *("experiment", "logger", "results_dir", "force", "progress", "show_text", "debug", "reference", "baseline"),
    *("allow_incorrect", "allow_lossy", "strict", "repeat"),
)
"""Top-level settings that do not change what is computed, so they are not part of a run's hash."""

NOT_IDENTITY_OF_RUNNER = ("strategy", "on_out_of_memory", "on_locked")
"""The same for the runner group."""


OmegaConf.register_new_resolver("process_id", os.getpid, use_cache=True, replace=True)
"""``${process_id:}``: separates the folders of sweeps that start within one second. Constant within a sweep."""

ConfigStore.instance().store(name="run_schema", node=RunConfig, provider="specdec.config.schema")
