"""The recipe of the built-in pair `tiny`: corpus, tokenizer, target, greedy outputs, draft, measurements, export.

    python train.py pair=tiny [rehearse=true]

It composes the parts of the tasks of train.py: the target is a fit of the next-token objective (`lm`) and some rounds
in which it unlearns its loops; the draft is two fits of the distillation objective (`distill`), on corpus text first
and then on the target's greedy outputs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import LlamaForCausalLM

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from experiments.tiny_pair.export import export_pair
from experiments.tiny_pair.step_times import measure_steps
from experiments.tiny_pair.target import (
    final_target,
    frozen_target,
    load_model,
    load_tokenizer,
    make_target,
    round_name,
    unloop,
)
from specdec.core.files import write_lines
from specdec.models.causal_lm import CausalLM
from specdec.registry import create
from specdec.training import TrainingError
from specdec.training.acceptance import measure_acceptance
from specdec.training.blocks import BlockStream
from specdec.training.budget import Budget
from specdec.training.config import LossConfig, TrainConfig, ValidationConfig
from specdec.training.corpus import Corpus, read_corpus
from specdec.training.draft import make_draft
from specdec.training.generation import generate_outputs
from specdec.training.heldout import make_prompts, read_prompts
from specdec.training.objectives import Distill
from specdec.training.outputs import OutputStream
from specdec.training.resolve import deciding, output_folder
from specdec.training.stages import Record, keep_settings, run_stage
from specdec.training.tasks import encoded, fit_model
from specdec.training.tokenizer import END_OF_TEXT_ID, encode_corpus, train_tokenizer


def train_tiny(cfg: TrainConfig) -> Record:
    """Run the stages that are not done yet, export, and print the acceptance report as one JSON line."""
    transformers.utils.logging.disable_progress_bar()
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    folder = output_folder(cfg)
    corpus = read_corpus(cfg.corpus)
    stages: dict[str, Callable[[Path], Record]] = {
        "tokenizer": partial(make_tokenizer, cfg, corpus),
        "heldout": partial(make_heldout, cfg, corpus, folder),
        "target": partial(make_target, cfg, folder),
        **{round_name(n): partial(unloop, cfg, corpus, folder, n) for n in range(1, cfg.unloop.rounds + 1)},
        "greedy": partial(make_greedy, cfg, corpus, folder),
        "warm": partial(make_warm_draft, cfg, folder),
        "draft": partial(make_final_draft, cfg, folder),
        "acceptance": partial(report_acceptance, cfg, folder),
        "step_times": partial(report_step_times, cfg, folder),
    }
    chosen = _chosen_stages(cfg, list(stages))
    if cfg.stages is None:  # a user who names stages decides which of them belong together
        keep_settings(folder, deciding(cfg), cfg.force)
    records = {name: run_stage(name, folder, cfg.force, stages[name]) for name in chosen}
    if cfg.stages is not None:
        return records
    destination = export_pair(cfg, folder, final_target(cfg, folder), records)
    report = {"export": str(destination), **records["acceptance"], "step_times": records["step_times"]}
    print(json.dumps(report))
    return report


def _chosen_stages(cfg: TrainConfig, known: list[str]) -> list[str]:
    """The stages to run, in the recipe's order."""
    for name in cfg.stages or ():
        if name not in known:
            raise TrainingError(f"stages={name} is not a stage of this recipe; choose from {', '.join(known)}")
    return [name for name in known if cfg.stages is None or name in cfg.stages]


def make_tokenizer(cfg: TrainConfig, corpus: Corpus, out: Path) -> Record:
    """Learn the tokenizer on the training files; encode training and held-out files."""
    tokenizer = train_tokenizer((file.text for file in corpus.train), cfg.vocab_size, cfg.context_length, out)
    return encode_corpus(corpus, tokenizer, cfg.seed, cfg.vocab_size, out)


def make_heldout(cfg: TrainConfig, corpus: Corpus, folder: Path, out: Path) -> Record:
    """Cut the held-out prompts."""
    prompts = make_prompts(corpus, load_tokenizer(folder), cfg.heldout, cfg.seed)
    write_lines(out / "heldout.jsonl", prompts)
    return {"prompts": len(prompts)}


def make_greedy(cfg: TrainConfig, corpus: Corpus, folder: Path, out: Path) -> Record:
    """Let the target continue prompts from training files."""
    target, tokenizer = CausalLM(frozen_target(cfg, folder)), load_tokenizer(folder)
    stops = frozenset([END_OF_TEXT_ID])
    return generate_outputs(target, corpus, tokenizer, cfg.greedy, cfg.seed, out, stop_ids=stops)


def make_warm_draft(cfg: TrainConfig, folder: Path, out: Path) -> Record:
    """Distil the draft on corpus text, from the target's distributions."""
    target = frozen_target(cfg, folder)
    draft = make_draft(target, cfg.draft_model, cfg.seed + 1, copied=True)
    stream = BlockStream(np.load(folder / "tokenizer/train.npy"), Budget(cfg.draft.warm), cfg.seed + 1)
    record = fit_model("draft.warm", draft, _distill(cfg, target), stream, cfg, None, out)
    torch.save(draft.state_dict(), out / "draft.pt")
    return record


def make_final_draft(cfg: TrainConfig, folder: Path, out: Path) -> Record:
    """Distil the warm draft further, on the target's greedy outputs."""
    target = frozen_target(cfg, folder)
    draft = make_draft(target, cfg.draft_model, cfg.seed + 1, copied=True)
    draft.load_state_dict(torch.load(folder / "warm/draft.pt"))
    stream = OutputStream(folder / "greedy", Budget(cfg.draft.final), cfg.seed)
    return fit_model("draft.final", draft, _distill(cfg, target), stream, cfg, None, out)


def report_acceptance(cfg: TrainConfig, folder: Path, out: Path) -> Record:
    """Acceptance of the models that ship on the held-out prompts, measured by the engine."""
    target, draft = (CausalLM(load_model(path)) for path in (final_target(cfg, folder), folder / "draft/model"))
    prompts = encoded(read_prompts(folder / "heldout/heldout.jsonl"), load_tokenizer(folder), cfg.measure.num_prompts)
    sizes = ValidationConfig(new_tokens=cfg.measure.new_tokens, gamma=cfg.measure.gamma)
    return measure_acceptance(target, lambda context: create("drafter", "model", context), prompts, sizes, draft=draft)


def report_step_times(cfg: TrainConfig, folder: Path, out: Path) -> Record:
    """Step times of the models that ship, on this machine."""
    target, draft = load_model(final_target(cfg, folder)), load_model(folder / "draft/model")
    return measure_steps(target, draft, cfg.measure.step_repeats)


def _distill(cfg: TrainConfig, target: LlamaForCausalLM) -> Distill:
    """Cross-entropy on the target's greedy choice, and forward KL."""
    losses = LossConfig(argmax=1.0 - cfg.draft.soft_weight, forward_kl=cfg.draft.soft_weight)
    return Distill(target, losses, cfg.seed)
