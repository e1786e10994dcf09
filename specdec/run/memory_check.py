"""Whether a point fits into memory: its weights before they are loaded, the whole run before it starts."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import torch
from omegaconf import DictConfig, open_dict

from specdec import assets
from specdec.core.prompts import Prompt
from specdec.models.memory import free_bytes, used_bytes
from specdec.models.pair import DTYPES, WEIGHTS, Pair, choose_device
from specdec.models.random_weights import random_model
from specdec.registry import lookup
from specdec.run.factory import build_batching
from specdec.run.memory_plan import MemoryPlan, require_weights

_REMEDY = {
    "pretrained": "choose runner.dtype=bfloat16, or a smaller pair",
    "random": "choose runner.dtype=bfloat16, or fewer layers (pair.num_layers)",
    "synthetic": "choose runner.dtype=bfloat16, or fewer layers (pair.num_layers)",
}


def check_weights(cfg: DictConfig) -> None:
    """Refuse a pair whose weights cannot fit, from architectures and safetensors headers alone.

    Weights of unknown size pass (a name on the Hub, other formats), as do wrong settings, which the loader reports.
    """
    if cfg.weights not in WEIGHTS or cfg.runner.dtype not in DTYPES or cfg.runner.tensor_parallel:
        return
    counts = {role: num_weights(role, cfg) for role in ("target", "draft")}
    itemsize = DTYPES[cfg.runner.dtype].itemsize
    sizes = {role: count * itemsize for role, count in counts.items() if count}
    require_weights(sizes, free_bytes(choose_device(cfg.runner.accelerator)), _REMEDY[cfg.weights])


def num_weights(role: str, cfg: DictConfig) -> int | None:
    """Number of weights of the target or draft; None if unknown."""
    if cfg.weights == "synthetic" and role == "draft":
        return 0  # shared with the target
    if cfg.weights != "pretrained":
        module = random_model(role, cfg, torch.float32, torch.device("meta"))
        return sum(int(weight.numel()) for weight in module.parameters())
    folder = Path(assets.resolve(cfg.pair[role] or "")).expanduser()
    files = sorted(folder.glob("*.safetensors")) if cfg.pair[role] and folder.is_dir() else []
    return sum(_num_stored(file) for file in files) or None


def _num_stored(file: Path) -> int:
    """Numbers in a safetensors file, whose header is 8 bytes of length and a JSON document with all shapes."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
    return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def plan_run(cfg: DictConfig, pair: Pair, prompts: list[Prompt]) -> MemoryPlan:
    """The prediction for a point with loaded and prepared models and known prompts."""
    models = [model for model in (pair.target, pair.draft) if model is not None]
    weights = {part.data_ptr(): part.nbytes for model in models for part in model.module.parameters()}
    drafts = cfg.drafter.name != "none"
    return MemoryPlan(
        target=pair.target.architecture,
        draft=pair.draft.architecture if drafts and pair.draft is not None else None,
        alignment=lookup("alignment", cfg.alignment.name).load(),
        base_bytes=max(used_bytes(pair.target.device), sum(weights.values())),
        batch=cfg.batch,
        window=build_batching(cfg).window if cfg.scheduler.name == "exspec" else None,
        longest_prompt=max(len(prompt.ids) for prompt in prompts),
        max_new_tokens=cfg.max_new_tokens,
        gamma=int(cfg.draft_length.get("max_gamma", cfg.gamma)) if drafts else 0,
        sampled=cfg.temperature > 0,
        prefill_chunk=cfg.runner.prefill_chunk,
    )


def check_run(cfg: DictConfig, pair: Pair, prompts: list[Prompt]) -> tuple[MemoryPlan, list[str]]:
    """The plan of a point that fits, with notes. With ``runner.on_out_of_memory=shrink`` prompts are read in chunks.

    Raises:
        ConfigError: it does not fit; the message says what would.
    """
    plan, free = plan_run(cfg, pair, prompts), free_bytes(pair.target.device)
    if cfg.runner.on_out_of_memory != "shrink":
        plan.require_fit(free)
    elif free is not None and plan.run_bytes > free and (chunk := plan.largest_chunk(free)):
        with open_dict(cfg):
            cfg.runner.prefill_chunk = chunk
        return plan_run(cfg, pair, prompts), [f"memory: prompts are read in chunks of {chunk} tokens"]
    return plan, []
