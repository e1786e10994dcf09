"""The tasks of train.py: `lm` (a model from scratch), `distill` (a draft of a frozen target), `heads` (beside one),
and `selector` (of tree shapes, in specdec/training/selector.py)."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers

from specdec.config.processes import launched_from_outside
from specdec.drafters.ranked_trees import ACCURACIES
from specdec.models.architecture import context_length
from specdec.models.causal_lm import CausalLM
from specdec.models.checkpoints import move
from specdec.registry import create
from specdec.training import TrainingError
from specdec.training.acceptance import HeldoutPrompt, measure_acceptance
from specdec.training.accuracies import measure_accuracies
from specdec.training.blocks import Stream, fixed_blocks
from specdec.training.budget import Budget
from specdec.training.chat import encoded_prompt
from specdec.training.checkpoints import load_archive
from specdec.training.config import TrainConfig
from specdec.training.device import device_of
from specdec.training.draft import aligned, new_draft
from specdec.training.export import export_heads, export_model, provenance_of
from specdec.training.heads import KINDS, HeadsObjective, layers_to_cache, reduce_vocabulary, write_heads
from specdec.training.heldout import read_prompts
from specdec.training.hidden_states import HiddenStates
from specdec.training.limits import check_heads, check_lengths
from specdec.training.loop import fit, take_best
from specdec.training.model import build_model, load_weights, num_parameters, save_model
from specdec.training.module import Objective, TrainingModule
from specdec.training.objectives import Distill, evaluate_loss, next_token
from specdec.training.outputs import OutputStream
from specdec.training.resolve import deciding, output_folder
from specdec.training.selector import train_selector
from specdec.training.sharding import check_sharding
from specdec.training.sources import Sources
from specdec.training.split import as_called, check_processes, check_split, join, led_stage, others_may_fail
from specdec.training.stages import Record, is_first_process, keep_settings, run_stage
from specdec.training.validation import Measure, Validation

HELDOUT = "heldout/heldout.jsonl"


def train(cfg: TrainConfig) -> Record:
    """Run one task: the stages that are not done yet, then the export; prints the report as one JSON line."""
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    if cfg.keep not in ("best", "last"):
        raise TrainingError(f"keep={cfg.keep}: choose best (by measured acceptance) or last")
    if cfg.task == "heads" and cfg.heads.kind not in KINDS:
        raise TrainingError(f"heads.kind={cfg.heads.kind} is unknown; choose from {', '.join(sorted(KINDS))}")
    if cfg.distill.data not in ("outputs", "corpus"):
        raise TrainingError(f"distill.data={cfg.distill.data} is unknown; choose outputs or corpus")
    if cfg.force and launched_from_outside():
        raise TrainingError("force=true with several processes: one would delete what others read; delete the folder")
    check_sharding(cfg)
    check_split(cfg)
    check_processes(cfg)
    if is_first_process():
        keep_settings(output_folder(cfg), deciding(cfg), cfg.force)
    if not cfg.device.tensor_parallel:
        report = TASKS[cfg.task](cfg, output_folder(cfg))
    else:
        with others_may_fail():
            join(cfg)
            report = TASKS[cfg.task](cfg, output_folder(cfg))
    print(json.dumps(report))
    return report


def train_language_model(cfg: TrainConfig, folder: Path) -> Record:
    """A causal language model from scratch, on packed text."""
    sources = Sources(cfg, folder)
    stream, stages = training_stream(cfg, folder, sources, "corpus")
    if cfg.start is not None:
        model = load_weights(cfg.start, "start", sources.vocab_size)
    else:
        ids = sources.special_ids
        model = build_model(cfg.target_model, sources.vocab_size, cfg.context_length, cfg.seed, ids)
    check_lengths(cfg, context_length(model.config), "start" if cfg.start else "context_length", "corpus")
    heldout_BT = fixed_blocks(sources.load("heldout"), min(512, cfg.context_length), 64)

    def measure(model: Any) -> Record:
        loss = evaluate_loss(model, heldout_BT)
        return {"heldout_loss": round(loss, 4), "score": -loss}  # without a draft there is no acceptance

    record = fit_stage("lm", model, next_token, stream, cfg, measure, folder)
    model = load_weights(str(folder / "fit/model"), "fit", sources.vocab_size)
    provenance = provenance_of(cfg, sources, {**stages, "fit": record})
    destination = export_model(cfg, model, sources, provenance)
    return {"export": str(destination), **record["final"], "steps": record["steps"]}


def frozen_target(cfg: TrainConfig, sources: Sources) -> CausalLM:
    """The target that a draft or heads are trained for, whose context holds the rows."""
    target = sources.target
    if cfg.device.tensor_parallel:
        _ = sources.fingerprint  # now, as it takes all processes
    check_lengths(cfg, target.context_length, f"frozen={cfg.frozen}", cfg.distill.data)
    return target


def train_draft(cfg: TrainConfig, folder: Path) -> Record:
    """A draft model that learns a frozen target's distribution."""
    sources = Sources(cfg, folder)
    target = frozen_target(cfg, sources)
    draft = new_draft(cfg, target)
    check_lengths(cfg, context_length(draft.config.get_text_config()), "the draft", cfg.distill.data)
    prompts = heldout_prompts(cfg, folder, sources)
    stream, stages = training_stream(cfg, folder, sources, cfg.distill.data)

    def measure(model: Any) -> Record:
        for module in (model, target.module):
            module.set_attn_implementation("sdpa")
        make = lambda context: create("drafter", "model", context)  # noqa: E731
        return measure_acceptance(target, make, prompts, cfg.validation, draft=aligned(model, target))

    objective = Distill(as_called(target, cfg), cfg.distill, cfg.seed)
    record = fit_stage("distill", draft, objective, stream, cfg, measure, folder)
    draft = move(load_weights(str(folder / "fit/model"), "fit", target.vocab_size), target.device)
    acceptance = measure(draft.eval())
    leave_the_rest_to_the_first()
    provenance = provenance_of(cfg, sources, {**stages, "fit": record}, acceptance)
    destination = export_model(cfg, draft, sources, provenance)
    return {"export": str(destination), "steps": record["steps"], **acceptance}


def train_heads(cfg: TrainConfig, folder: Path) -> Record:
    """Heads, a layer or prompt tokens beside a frozen target."""
    kind, sources = KINDS[cfg.heads.kind], Sources(cfg, folder)
    target = frozen_target(cfg, sources)
    check_heads(cfg.heads, target.vocab_size, reducible=kind.reducible)
    prompts = heldout_prompts(cfg, folder, sources)
    torch.manual_seed(cfg.seed)
    module, settings = kind.build(target.module, cfg.heads).float(), kind.settings(cfg.heads)
    stream, stages = training_stream(cfg, folder, sources, cfg.distill.data)
    reduce_vocabulary(module, cfg.heads, stream, target)
    target.module.requires_grad_(False)
    if cfg.heads.cache_hidden:
        if not isinstance(stream, OutputStream):
            raise TrainingError(
                f"heads.cache_hidden=true with distill.data={cfg.distill.data}: blocks have other borders in every "
                "pass; set distill.data=outputs"
            )
        layers = layers_to_cache(cfg.heads, module, target.module)
        stream.states = HiddenStates(target, sources.fingerprint, folder / "outputs", layers)
        stages["hidden"] = led_stage("hidden", folder, cfg, stream.states.make, lambda: target)

    def measure(trained: Any) -> Record:
        with TemporaryDirectory() as path:  # measured as a run would load it
            write_heads(Path(path), cfg.heads, settings, trained, target)
            make = lambda context: create("drafter", cfg.heads.kind, context, path=path)  # noqa: E731
            return measure_acceptance(target, make, prompts, cfg.validation)

    objective = HeadsObjective(kind, as_called(target, cfg), cfg.heads, cfg.seed, cfg.distill)
    record = fit_stage(f"heads.{cfg.heads.kind}", module, objective, stream, cfg, measure, folder)
    module.load_state_dict(load_archive(folder / "fit/module.pt", "delete the folder `fit`"))
    acceptance = measure(module.to(target.device).eval())
    if kind.guesses is not None:
        served = copy.deepcopy(module).to(target.dtype)
        settings[ACCURACIES] = measure_accuracies(kind.guesses, served, target, prompts, cfg.validation)
    if kind.calibrate is not None:
        every = encoded(read_prompts(folder / HELDOUT), sources.tokenizer, None)
        record["calibration"] = kind.calibrate(module, target, every, cfg.validation)
    leave_the_rest_to_the_first()
    provenance = provenance_of(cfg, sources, {**stages, "fit": record}, acceptance)
    destination = export_heads(cfg, settings, module, target, provenance)
    return {"export": str(destination), "steps": record["steps"], **acceptance}


TASKS: dict[str, Callable[[TrainConfig, Path], Record]] = {
    "lm": train_language_model,
    "distill": train_draft,
    "heads": train_heads,
    "selector": train_selector,
}


def fit_stage(
    name: str, model: Any, objective: Objective, stream: Stream, cfg: TrainConfig, measure: Measure, folder: Path
) -> Record:
    """The stage `fit` of a task; after it only the first process goes on, which measures and exports.

    With a split target all go on to measure, and end before the export.
    """
    work = lambda out: fit_model(name, model, objective, stream, cfg, measure, out)  # noqa: E731
    record = run_stage("fit", folder, cfg.force, work, by_all=True)
    if not cfg.device.tensor_parallel:
        leave_the_rest_to_the_first()
    return record


def leave_the_rest_to_the_first() -> None:
    """End this process if it is another one."""
    if not is_first_process():
        sys.exit(0)


def fit_model(
    name: str, model: Any, objective: Objective, stream: Stream, cfg: TrainConfig, measure: Measure | None, out: Path
) -> Record:
    """Fit, load the best weights if they were measured and are to be kept, and write the result to `out`."""
    module = TrainingModule(name, model, objective, stream)
    validation = None
    if measure is not None:
        validation = Validation(out, cfg.validation, measure, by_all=cfg.device.tensor_parallel)
    record = fit(module, out, cfg, validation)
    record["kept_step"] = take_best(module, out) if measure is not None and cfg.keep == "best" else None
    record["parameters"] = num_parameters(module.result)
    result = module.result.eval().to(device_of(cfg))  # Lightning leaves it on the CPU
    if is_first_process():
        save_result(result, out)
    if measure is not None:
        record["final"] = measure(result)
    return record


def save_result(result: Any, out: Path) -> None:
    """A fit's model, or its heads."""
    if isinstance(result, transformers.PreTrainedModel):
        save_model(result, out / "model")
    else:
        torch.save(result.state_dict(), out / "module.pt")


def training_stream(cfg: TrainConfig, folder: Path, sources: Sources, data: str) -> tuple[Stream, dict[str, Record]]:
    """Training batches from the target's outputs, generated once, or from the corpus; and the record of that stage."""
    budget = Budget(cfg.fit)
    if data == "corpus":
        record = run_stage("tokens", folder, cfg.force, sources.encode)
        return sources.blocks(budget), {"tokens": record}
    record = led_stage("outputs", folder, cfg, sources.generate, lambda: sources.target)
    options = {"count_prompt": cfg.distill.count_prompt, "cut_loops": cfg.greedy.cut_loops}
    stream = OutputStream(folder / "outputs", budget, cfg.seed, **options)
    return stream, {"outputs": record}


def heldout_prompts(cfg: TrainConfig, folder: Path, sources: Sources) -> list[HeldoutPrompt]:
    """Prompts of held-out documents, evenly over the categories and lengths."""
    _ = sources.corpus  # in all processes: a split target writes questions with all of them
    run_stage("heldout", folder, cfg.force, sources.cut_prompts)
    prompts = read_prompts(folder / HELDOUT)
    return encoded(prompts, sources.tokenizer, cfg.validation.num_prompts)


def encoded(prompts: list[dict[str, Any]], tokenizer: Any, count: int | None) -> list[HeldoutPrompt]:
    """`count` of the prompts (None: all), as token ids, evenly over their lengths and categories."""
    every = max(1, len(prompts) // count) if count else 1
    some = prompts[:: every | 1][:count]  # an odd step, because the number of categories is even
    return [HeldoutPrompt(_ids(prompt, tokenizer), str(prompt["category"])) for prompt in some]


def _ids(prompt: dict[str, Any], tokenizer: Any) -> list[int]:
    """Text as it stands, messages by the chat template."""
    if "messages" in prompt:
        return encoded_prompt(tokenizer, prompt["messages"])
    return list(tokenizer(prompt["turns"][0]).input_ids)
