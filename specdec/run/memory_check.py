"""Whether a point fits into memory: its weights before they are loaded, the whole run before it starts."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod
from pathlib import Path

import torch

from specdec.assets import local_path
from specdec.config.plugins import declared
from specdec.config.schema import RunConfig
from specdec.core.prompts import Prompt
from specdec.models.gguf import checked_header, is_gguf
from specdec.models.memory import free_bytes, used_bytes
from specdec.models.pair import DTYPES, WEIGHTS, Pair, choose_device
from specdec.models.random_weights import random_model
from specdec.run.factory import build_batching, build_tree, max_depth, most_nodes
from specdec.run.memory_plan import MemoryPlan, require_weights

_REMEDY = {
    "pretrained": "choose runner.dtype=bfloat16, or a smaller pair",
    "random": "choose runner.dtype=bfloat16, or fewer layers (pair.num_layers)",
    "synthetic": "choose runner.dtype=bfloat16, or fewer layers (pair.num_layers)",
}


def check_weights_fit(config: RunConfig) -> None:
    """Refuse a pair whose weights cannot fit, from architectures and the headers of files alone.

    Weights of unknown size pass (a name on the Hub, other formats), as do wrong settings, which the loader reports.
    """
    if config.weights not in WEIGHTS or config.runner.dtype not in DTYPES or config.runner.tensor_parallel:
        return
    counts = {role: num_weights(role, config) for role in ("target", "draft")}
    itemsize = DTYPES[config.runner.dtype].itemsize
    sizes = {role: count * itemsize for role, count in counts.items() if count}
    require_weights(sizes, free_bytes(choose_device(config.runner.accelerator)), _REMEDY[config.weights])


def num_weights(role: str, config: RunConfig) -> int | None:
    """Number of weights of the target or draft; None if unknown."""
    if config.weights == "synthetic" and role == "draft":
        return 0  # shared with the target
    if config.weights != "pretrained":
        module = random_model(role, config.pair, config.seed, torch.float32, torch.device("meta"))
        return sum(int(weight.numel()) for weight in module.parameters())
    checkpoint = getattr(config.pair, role) or ""
    folder = local_path(checkpoint)
    if is_gguf(checkpoint):
        return checked_header(role, checkpoint, folder).num_weights
    files = sorted(folder.glob("*.safetensors")) if checkpoint and folder.is_dir() else []
    return sum(_num_stored(file) for file in files) or None


def _num_stored(file: Path) -> int:
    """Number of elements in a safetensors file: its header is 8 bytes of length and a JSON document with all shapes."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
    return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def plan_run(config: RunConfig, pair: Pair, prompts: list[Prompt]) -> MemoryPlan:
    """The predicted memory of a point whose models are loaded and whose prompts are known."""
    models = [model for model in (pair.target, pair.draft) if model is not None]
    weights = {part.data_ptr(): part.nbytes for model in models for part in model.module.parameters()}
    drafts, depth, tree = declared(config, "drafter").drafts, max_depth(config), build_tree(config)
    return MemoryPlan(
        target=pair.target.architecture,
        draft=pair.draft.architecture if drafts and pair.draft is not None else None,
        alignment=declared(config, "alignment").load(),
        base_bytes=max(used_bytes(pair.target.device), sum(weights.values())),
        batch=config.batch,
        window=build_batching(config).window if declared(config, "scheduler").windowed else None,
        longest_prompt=max(len(prompt.ids) for prompt in prompts),
        max_new_tokens=config.max_new_tokens,
        num_nodes=most_nodes(config, tree),
        sampled=config.temperature > 0,
        prefill_chunk=config.runner.prefill_chunk,
        num_fed=tree.num_fed(depth) + 1 if depth else 0,
        widest=max((tree.num_fed(d + 1) - tree.num_fed(d) for d in range(1, depth)), default=1),
        ragged=all(model.execution.ragged for model in models),
    )


def check_run_fits(config: RunConfig, pair: Pair, prompts: list[Prompt]) -> tuple[MemoryPlan, RunConfig, list[str]]:
    """The plan of a point that fits, its config, and notes. With ``runner.on_out_of_memory=shrink`` the config may be
    changed: prompts are then read in chunks.

    Raises:
        ConfigError: it does not fit; the message says what would.
    """
    plan, free = plan_run(config, pair, prompts), free_bytes(pair.target.device)
    if config.runner.on_out_of_memory != "shrink":
        plan.require_fit(free)
    elif free is not None and plan.run_bytes > free and (chunk := plan.largest_chunk(free)):
        chunked = replace(config, runner=replace(config.runner, prefill_chunk=chunk))
        return plan_run(chunked, pair, prompts), chunked, [f"memory: prompts are read in chunks of {chunk} tokens"]
    return plan, config, []
