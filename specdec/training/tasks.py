"""The tasks of train.py: `lm` (a model from scratch), `distill` (a draft of a frozen target), `heads` (beside one)."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers

from specdec.drafters.trained import save_heads
from specdec.models.causal_lm import CausalLM
from specdec.registry import create
from specdec.training import TrainingError
from specdec.training.acceptance import HeldoutPrompt, measure_acceptance
from specdec.training.blocks import BlockStream, Stream, fixed_blocks
from specdec.training.budget import Budget
from specdec.training.config import TrainConfig, deciding, output_folder
from specdec.training.export import export_heads, export_model, provenance_of
from specdec.training.heads import KINDS, HeadsObjective
from specdec.training.heldout import read_prompts
from specdec.training.loop import fit, take_best
from specdec.training.model import build_model, load_llama, num_parameters, save_model, start_from_target
from specdec.training.module import Objective, TrainingModule
from specdec.training.objectives import Distill, evaluate_loss, next_token
from specdec.training.outputs import OutputStream, generate_outputs
from specdec.training.sources import Sources
from specdec.training.stages import Record, keep_settings, run_stage
from specdec.training.validation import Measure, Validation


def train(cfg: TrainConfig) -> Record:
    """Run one task: its stages that are not done yet, then the export; prints the report as one JSON line."""
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    if cfg.keep not in ("best", "last"):
        raise TrainingError(f"keep={cfg.keep}: choose best (by measured acceptance) or last")
    if cfg.task == "heads" and cfg.heads.kind not in KINDS:
        raise TrainingError(f"heads.kind={cfg.heads.kind} is unknown; choose from {', '.join(sorted(KINDS))}")
    keep_settings(output_folder(cfg), deciding(cfg), cfg.force)
    report = TASKS[cfg.task](cfg, output_folder(cfg))
    print(json.dumps(report))
    return report


def train_language_model(cfg: TrainConfig, folder: Path) -> Record:
    """A causal language model from scratch, on packed text."""
    sources = Sources(cfg, folder)
    tokens = run_stage("tokens", folder, cfg.force, sources.encode)
    if cfg.start is not None:
        model = load_llama(cfg.start, "start", sources.vocab_size)
    else:
        ids = sources.special_ids
        model = build_model(cfg.target_model, sources.vocab_size, cfg.context_length, cfg.seed, ids)
    heldout_BT = fixed_blocks(sources.load("heldout"), min(512, cfg.context_length), 64)

    def measure(model: Any) -> Record:
        loss = evaluate_loss(model, heldout_BT)
        return {"heldout_loss": round(loss, 4), "score": -loss}  # no draft is known yet whose acceptance could decide

    budget = Budget(cfg.fit)
    stream = BlockStream(sources.load("train"), budget, cfg.seed)
    work = partial(fit_model, "lm", model, next_token, stream, budget, cfg, measure)
    record = run_stage("fit", folder, cfg.force, work)
    model = load_llama(str(folder / "fit/model"), "fit", sources.vocab_size)
    stages = {"tokens": tokens, "fit": record}
    destination = export_model(cfg, model, sources, provenance_of(cfg, sources, stages))
    return {"export": str(destination), **record["final"], "steps": record["steps"]}


def train_draft(cfg: TrainConfig, folder: Path) -> Record:
    """A draft model that learns a frozen target's law."""
    sources = Sources(cfg, folder)
    target = sources.target
    prompts = heldout_prompts(cfg, folder, sources)
    draft = new_draft(cfg, target)
    budget = Budget(cfg.fit)
    stream, stages = training_stream(cfg, folder, sources, budget, cfg.distill.data)

    def measure(model: Any) -> Record:
        model.set_attn_implementation("sdpa")
        target.module.set_attn_implementation("sdpa")
        context_draft = CausalLM(model)
        make = lambda context: create("drafter", "model", context)  # noqa: E731
        return measure_acceptance(target, make, prompts, cfg.validation, draft=context_draft)

    objective = Distill(target.module, cfg.distill, cfg.seed)
    work = partial(fit_model, "distill", draft, objective, stream, budget, cfg, measure)
    record = run_stage("fit", folder, cfg.force, work)
    draft = load_llama(str(folder / "fit/model"), "fit", target.vocab_size)
    acceptance = measure(draft.eval())
    provenance = provenance_of(cfg, sources, {**stages, "fit": record}, acceptance)
    destination = export_model(cfg, draft, sources, provenance)
    return {"export": str(destination), "steps": record["steps"], **acceptance}


def train_heads(cfg: TrainConfig, folder: Path) -> Record:
    """Heads, a layer or prompt tokens beside a frozen target."""
    kind, sources = KINDS[cfg.heads.kind], Sources(cfg, folder)
    target = sources.target
    prompts = heldout_prompts(cfg, folder, sources)
    torch.manual_seed(cfg.seed)
    module = kind.build(target.module, cfg.heads)
    budget = Budget(cfg.fit)
    stream, stages = training_stream(cfg, folder, sources, budget, cfg.distill.data)
    target.module.requires_grad_(False)

    def measure(trained: Any) -> Record:
        # By way of a folder, so that what is measured is what others will load.
        with TemporaryDirectory() as path:
            save_heads(Path(path), cfg.heads.kind, kind.settings(cfg.heads), trained, target)
            make = lambda context: create("drafter", cfg.heads.kind, context, path=path)  # noqa: E731
            return measure_acceptance(target, make, prompts, cfg.validation)

    objective = HeadsObjective(kind, target.module, cfg.heads, cfg.seed)
    work = partial(fit_model, f"heads.{cfg.heads.kind}", module, objective, stream, budget, cfg, measure)
    record = run_stage("fit", folder, cfg.force, work)
    module.load_state_dict(torch.load(folder / "fit/module.pt"))
    acceptance = measure(module.eval())
    provenance = provenance_of(cfg, sources, {**stages, "fit": record}, acceptance)
    destination = export_heads(cfg, kind.settings(cfg.heads), module, target, provenance)
    return {"export": str(destination), "steps": record["steps"], **acceptance}


TASKS: dict[str, Callable[[TrainConfig, Path], Record]] = {
    "lm": train_language_model,
    "distill": train_draft,
    "heads": train_heads,
}


def fit_model(
    name: str,
    model: Any,
    objective: Objective,
    stream: Stream,
    budget: Budget,
    cfg: TrainConfig,
    measure: Measure | None,
    out: Path,
) -> Record:
    """Fit, take the best weights where acceptance was measured, and write them to `out`."""
    module = TrainingModule(name, model, objective, stream, budget)
    validation = Validation(out, cfg.validation, measure) if measure is not None else None
    record = fit(module, out, cfg, validation)
    record["kept_step"] = take_best(module, out) if measure is not None and cfg.keep == "best" else None
    record["parameters"] = num_parameters(module.result)
    result = module.result.eval()
    if isinstance(result, transformers.LlamaForCausalLM):
        save_model(result, out / "model")
    else:
        torch.save(result.state_dict(), out / "module.pt")
    if measure is not None:
        record["final"] = measure(result)
    return record


def new_draft(cfg: TrainConfig, target: CausalLM) -> Any:
    """The draft as training begins: given weights, the target's own layers where the shapes allow, or random ones."""
    if cfg.start is not None:
        return load_llama(cfg.start, "start", target.vocab_size)
    config = target.module.config
    ids = (config.bos_token_id, stop_id(target), config.pad_token_id)
    draft = build_model(cfg.draft_model, target.vocab_size, target.context_length, cfg.seed + 1, ids)
    if cfg.new_draft not in ("target", "random"):
        raise TrainingError(f"new_draft={cfg.new_draft}: choose target (its layers, where the widths match) or random")
    if cfg.new_draft == "target":
        start_from_target(draft, target.module)
    return draft


def stop_id(target: CausalLM) -> int | None:
    """One token that ends the target's texts."""
    eos: int | list[int] | None = target.module.config.eos_token_id
    return eos[0] if isinstance(eos, list) else eos


def training_stream(
    cfg: TrainConfig, folder: Path, sources: Sources, budget: Budget, data: str
) -> tuple[Stream, dict[str, Record]]:
    """What a draft or heads learn from: the target's outputs, generated once, or text as it is."""
    if data == "corpus":
        record = run_stage("tokens", folder, cfg.force, sources.encode)
        return BlockStream(sources.load("train"), budget, cfg.seed), {"tokens": record}
    if data != "outputs":
        raise TrainingError(f"distill.data={data} is unknown; choose outputs or corpus")

    def generate(out: Path) -> Record:
        return generate_outputs(
            sources.target,
            sources.corpus,
            sources.tokenizer,
            cfg.greedy,
            cfg.seed,
            out,
            stop_ids=sources.stop_ids,
            made_by=sources.fingerprint,
        )

    record = run_stage("outputs", folder, cfg.force, generate)
    stream = OutputStream(folder / "outputs", budget, cfg.seed, count_prompt=cfg.distill.count_prompt)
    return stream, {"outputs": record}


def heldout_prompts(cfg: TrainConfig, folder: Path, sources: Sources) -> list[HeldoutPrompt]:
    """Prompts of held-out documents, evenly over the categories and lengths."""
    run_stage("heldout", folder, cfg.force, sources.cut_prompts)
    prompts = read_prompts(folder / "heldout/heldout.jsonl")
    return encoded(prompts, sources.tokenizer, cfg.validation.num_prompts)


def encoded(prompts: list[dict[str, Any]], tokenizer: Any, count: int | None) -> list[HeldoutPrompt]:
    """Some of the prompts, as ids: every n-th, so that all lengths and categories are among them."""
    every = max(1, len(prompts) // count) if count else 1
    some = prompts[:: every | 1][:count]  # an odd step: categories repeat with an even period
    return [HeldoutPrompt(list(tokenizer(p["turns"][0]).input_ids), str(p["category"])) for p in some]
