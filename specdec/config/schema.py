"""Structured configs of a run. Imports no torch.

Help texts are for `--help` and docs/config.md.
"""

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
    """Shape and dial of the pair made without training (`weights=synthetic`)."""

    draft_layers: int = setting(2, "the draft is the target's first layers, embeddings and head")
    residual_scale: float = setting(0.1, "the dial: how much the target's other layers may say; 0 accepts everything")


@dataclass
class PairConfig:
    """A target, a draft and a tokenizer: Hub names, local folders in Hub format, or GGUF files."""

    name: str = setting(MISSING, "what tables call it; the preset's, or where others are given that of the checkpoints")
    folder: str | None = setting(
        None, "what train.py exported: fills target, draft and tokenizer; `pair=FOLDER` sets it"
    )
    target: str | None = setting(None, "Hub name, local folder, GGUF file, or fetched:NAME")
    draft: str | None = setting(None, "Hub name, local folder or GGUF file; null: the pair has none")
    tokenizer: str | None = setting(None, "Hub name, local folder or GGUF file; null means the target's")
    draft_tokenizer: str | None = setting(
        None, "for drafter=retokenize: Hub name or local folder; null means the draft's own"
    )
    trust_remote_code: bool = setting(False, "never run code that comes with a checkpoint, unless you say so")
    allow_pickle: bool = setting(
        False, "read .bin weights (restricted unpickling) where a checkpoint has no safetensors"
    )
    attention: str = setting("sdpa", "transformers attention implementation: sdpa or eager")
    weights: str = setting("pretrained", "what `weights` is for this pair unless you say otherwise")
    threads: int | None = setting(None, "CPU threads that suit it, where runner.threads says nothing")
    num_layers: int | None = setting(None, "random weights: layers of the target (the draft keeps at most as many)")
    hidden_size: int | None = setting(None, "random weights: width of the target; heads and MLP are scaled with it")
    vocab_size: int | None = setting(None, "random weights: vocabulary of both models")
    target_architecture: dict[str, Any] | None = setting(None, "config.json as a dict, for weights=random")
    draft_architecture: dict[str, Any] | None = None
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)


@dataclass
class RunnerConfig:
    """Where and how the models run, and what happens when something goes wrong."""

    accelerator: str = setting("auto", "auto (a GPU where there is one), cpu, cuda")
    devices: Any = setting(1, "processes of this run, one device each; or a list of GPUs, such as [2,3]")
    num_nodes: int = setting(1, "machines, each with `devices` processes; more than one needs torchrun or srun")
    strategy: str = setting(
        "auto", "how processes start: auto or ddp (spawned here, unless torchrun or srun did it), ddp_fork"
    )
    tensor_parallel: bool = setting(
        False, "split the target over the processes (transformers' tp_plan), not the prompts"
    )
    dtype: str = setting("float32", "float32, float64, bfloat16, float16")
    threads: int | None = setting(None, "CPU threads of torch, per process; null: pair.threads, or torch's own choice")
    prefill_chunk: int | None = setting(
        None, "tokens of a prompt per forward, to bound its memory; null: whole prompts"
    )
    on_out_of_memory: str = setting("fail", "fail: the point fails; shrink: go on with half the batch, and say so")
    on_locked: str = setting(
        "wait", "a point that another process is computing: wait for its result, or skip it for now"
    )


@dataclass
class DebugConfig:
    """Checks and shortcuts for development."""

    name: str = "none"
    invariants: bool = setting(False, "check every call of the alignment contract, as executable promises")
    invariants_every: int = setting(8, "every n-th round also compares logits and cache with fresh forwards")


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
    arrivals: Any = MISSING
    logger: Any = MISSING
    runner: RunnerConfig = field(default_factory=RunnerConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)
    experiment: str | None = setting(None, "the preset's name, which its points' summaries list under `experiments`")

    weights: str = setting(
        "${pair.weights}", "pretrained; random (same architecture, no download); synthetic (with a dial)"
    )
    execution: str = setting(
        "auto", "how forwards are computed: eager (transformers' own code), fused, compiled; auto chooses"
    )
    batch: int = setting(4, "rows per round")
    gamma: int = setting(5, "drafted tokens per row and round, for the policies that take it")
    max_new_tokens: int = 64
    stop_tokens: list[int] | None = setting(None, "null: the model's own end-of-text tokens; []: none")
    stop_strings: list[str] | None = setting(None, "texts that end a row, looked for in what it emits")
    temperature: float = setting(0.0, "0: greedy; above: sampling, with verifier=rejection, block or naive")
    top_k: int | None = setting(None, "sample among the k most probable tokens; null: no limit")
    top_p: float = setting(1.0, "sample among the fewest tokens whose probabilities reach top_p")
    min_p: float = setting(0.0, "drop tokens less probable than min_p times the most probable one")
    repetition_penalty: float = setting(1.0, "above 1: tokens of the row so far become less probable, greedy or not")
    seed: int = setting(0, "of random weights and of sampling")
    reference: bool = setting(True, "compare with greedy decoding of the target alone at batch 1 (cached on disk)")
    baseline: bool = setting(True, "measure scheduler=plain at the same batch size too, for speedup_vs_ar")
    bound: bool = setting(
        False, "afterwards, time the same forwards without the loop: forward_bound_s, loop_efficiency"
    )
    warmup: bool = setting(True, "decode a few tokens before the clock starts")
    results_dir: str = "results"
    strict: bool = setting(False, "exit with an error if a divergence from the reference is not explained by rounding")
    allow_incorrect: bool = setting(False, "let plug-ins run that are known to be wrong (bsp, dsd, lockstep)")
    allow_lossy: bool = setting(False, "let verifiers run whose output does not have the target's law (typical)")
    force: bool = setting(False, "run again although a finished result exists")
    show_text: bool = setting(False, "print the outputs of a point's first rows")
    progress: bool = setting(True, "a progress bar, where stdout is a terminal")


RANDOM_WEIGHTS_PROMPTS = 8
"""data.num_prompts of weights=random where nothing is said: nobody waits an hour for noise."""

NOT_IDENTITY = (
    *("experiment", "logger", "results_dir", "force", "progress", "show_text", "debug", "reference", "baseline"),
    *("allow_incorrect", "allow_lossy", "strict"),
)
"""Top-level settings that do not change what is computed, so they do not enter a run's hash."""

NOT_IDENTITY_OF_RUNNER = ("strategy", "on_out_of_memory", "on_locked")
"""The same, of the runner group."""


OmegaConf.register_new_resolver("process_id", os.getpid, use_cache=True, replace=True)
"""``${process_id:}``: sweeps that start within one second have folders of their own. Constant within a sweep."""

ConfigStore.instance().store(name="run_schema", node=RunConfig, provider="specdec.config.schema")
