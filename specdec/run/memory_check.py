"""Whether a point fits into memory: its weights before they are loaded, the whole run before it starts."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import torch

from specdec.alignment.base import Alignment
from specdec.alignment.prefix_tree import shared_parts
from specdec.assets import local_path
from specdec.config.plugins import declared
from specdec.config.schema import RunConfig
from specdec.core.prompts import Prompt, declared_tokens
from specdec.core.sequence import Sequence
from specdec.drafters.base import Drafter
from specdec.models.causal_lm import CausalLM
from specdec.models.execution.eager import EagerExecution
from specdec.models.gguf import checked_header, is_gguf
from specdec.models.live_bytes import scan_bytes
from specdec.models.memory import free_bytes, used_bytes
from specdec.models.pair import DTYPES, WEIGHTS, Pair, choose_device
from specdec.models.random_weights import random_model
from specdec.run.factory import build_batching, build_tree, max_depth, most_nodes
from specdec.run.memory_plan import MemoryPlan, require_weights
from specdec.run.model_memory import EAGER, FUSED, NO_SCAN, RAGGED, ModelMemory, Sharing
from specdec.verifiers.base import LawVerifier

_REMEDY = {
    "pretrained": "choose runner.dtype=bfloat16, or a smaller pair",
    "random": "choose runner.dtype=bfloat16, or fewer layers (pair.num_layers)",
    "synthetic": "choose runner.dtype=bfloat16, or fewer layers (pair.num_layers)",
}

_WINDOWS = 64  # sets of rows in flight whose common tokens are counted


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


def plan_run(config: RunConfig, pair: Pair, prompts: list[Prompt], drafter: Drafter) -> MemoryPlan:
    """The predicted memory of a point whose models are loaded and prepared and whose prompts are known."""
    models = [model for model in (pair.target, pair.draft) if model is not None]
    weights = {part.data_ptr(): part.nbytes for model in models for part in model.module.parameters()}
    adds, alignment = drafter.memory, declared(config, "alignment").load()
    depth, tree = max_depth(config), build_tree(config)
    num_nodes = adds.num_nodes or most_nodes(config, tree)
    num_fed = adds.block or (tree.num_fed(depth) + 1 if depth else 0)
    widest = max((tree.num_fed(d + 1) - tree.num_fed(d) for d in range(1, depth)), default=1)
    step = adds.block or max(widest, 2)
    draft = None
    if adds.model is not None and depth:
        num_logits = step if adds.num_logits is None else adds.num_logits
        draft = _model(adds.model, adds.alignment or alignment, num_fed, step, num_logits)
    num_laws = (adds.num_logits or 0) if draft is None else num_nodes + draft.num_logits
    target = _model(pair.target, alignment, num_nodes + 1, num_nodes + 1, num_nodes + 1)
    window = build_batching(config).window if declared(config, "scheduler").windowed else None
    by_column = issubclass(declared(config, "verifier").load(), LawVerifier)
    return MemoryPlan(
        target=replace(target, num_hidden=len(drafter.hidden_layers), num_laws=1 if by_column else num_nodes + 1),
        draft=draft,
        base_bytes=max(used_bytes(pair.target.device), sum(weights.values())),
        batch=config.batch,
        window=window,
        longest_prompt=max(len(prompt.ids) for prompt in prompts),
        max_new_tokens=config.max_new_tokens,
        sampled=config.temperature > 0,
        prefill_chunk=config.runner.prefill_chunk,
        law_bytes=8 * num_laws * pair.target.vocab_size,
        token_bytes=adds.token_bytes if pair.target.device.type == "cpu" else 0,
        row_bytes=adds.row_bytes,
        by_products=adds.by_products,
        hidden_chunk=adds.hidden_chunk,
        sharing=_sharing(config, prompts, max(config.batch, window or 0)),
    )


def _sharing(config: RunConfig, prompts: list[Prompt], in_flight: int) -> Sharing | None:
    """What rows in flight hold once, at most, if they are neighbours in the order of admission; None: nothing ever."""
    least, declared_ids = getattr(config.alignment, "shared_prefix", 0), declared_tokens(prompts)
    if not (least or declared_ids):
        return None
    rows = [Sequence(prompt.index, prompt.ids, 1, frozenset()) for prompt in prompts]
    ids = [np.array(row.prompt_ids[:-1], dtype=np.int64) for row in build_batching(config).order(rows)]
    most, last = Sharing(0, 0, 1), max(len(ids) - in_flight, 0)
    for start in range(0, last + 1, max(1, last // _WINDOWS)):
        window = ids[start : start + in_flight]
        read, columns = [min(len(declared_ids), len(own)) for own in window], len(declared_ids)
        for group, length in shared_parts(window, read, least) if least else []:
            columns += length - max(read[b] for b in group)
            for b in group:
                read[b] = length
        own = max(len(tokens) + 1 - shared for tokens, shared in zip(window, read, strict=True))
        most = Sharing(max(most.columns, columns), max(most.path, *read), max(most.own, own))
    return most


def _model(model: CausalLM, alignment: type[Alignment], num_fed: int, step: int, num_logits: int) -> ModelMemory:
    """A model as its execution computes it."""
    kind = RAGGED if model.execution.ragged else EAGER if isinstance(model.execution, EagerExecution) else FUSED
    sizes = model.architecture
    scan = scan_bytes(model.module, sizes.token_bytes, sizes.states.continues) if model.recurrent else NO_SCAN
    return ModelMemory(model.architecture, alignment, num_fed, step, num_logits, kind, scan=scan)


def check_run_fits(
    config: RunConfig, pair: Pair, prompts: list[Prompt], drafter: Drafter
) -> tuple[MemoryPlan, RunConfig, list[str]]:
    """The plan of a point that fits, its config, and notes. With ``runner.on_out_of_memory=shrink`` the config may be
    changed: prompts are then read in chunks.

    Raises:
        ConfigError: it does not fit; the message says what would.
    """
    plan, free = plan_run(config, pair, prompts, drafter), free_bytes(pair.target.device)
    if config.runner.on_out_of_memory != "shrink":
        plan.require_fit(free)
    elif free is not None and plan.run_bytes > free and (chunk := plan.largest_chunk(free)):
        chunked = replace(config, runner=replace(config.runner, prefill_chunk=chunk))
        return (
            plan_run(chunked, pair, prompts, drafter),
            chunked,
            [f"memory: prompts are read in chunks of {chunk} tokens"],
        )
    return plan, config, []
