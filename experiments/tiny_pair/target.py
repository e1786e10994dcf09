"""The target of the built-in pair: trained on the corpus, or taken from fits of `task=lm`; then made to loop less."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from experiments.tiny_pair.unloop import Unlikelihood, loop_share
from specdec.assets import local_path
from specdec.models.causal_lm import CausalLM
from specdec.models.checkpoints import move
from specdec.training import TrainingError
from specdec.training.blocks import BlockStream, fixed_blocks
from specdec.training.budget import Budget
from specdec.training.config import TrainConfig
from specdec.training.corpus import Corpus
from specdec.training.device import device_of
from specdec.training.generation import generate_outputs
from specdec.training.model import build_model, load_weights, num_parameters, save_model
from specdec.training.objectives import evaluate_loss, next_token
from specdec.training.outputs import OutputStream
from specdec.training.stages import Record
from specdec.training.tasks import fit_model
from specdec.training.tokenizer import END_OF_TEXT_ID


def make_target(cfg: TrainConfig, folder: Path, out: Path) -> Record:
    """Train the target on corpus text, or take it from `start`; measure it rounded to bfloat16, as it ships."""
    if cfg.start is None:
        model = build_model(cfg.target_model, cfg.vocab_size, cfg.context_length, cfg.seed)
        stream = BlockStream(np.load(folder / "tokenizer/train.npy"), Budget(cfg.target), cfg.seed)
        record = fit_model("target", model, next_token, stream, cfg, None, out)
    else:
        model = load_weights(cfg.start, "start", cfg.vocab_size)
        save_model(model, out / "model")
        record = {**fits_behind(local_path(cfg.start)), "parameters": num_parameters(model)}
    return {**record, "heldout_loss": heldout_loss(folder, out / "model")}


def fits_behind(start: Path) -> Record:
    """Steps, tokens and seconds of all fits that led to a folder of weights, one after the other.

    They are in its provenance.json, or in the one of the pair that it is a part of.

    Raises:
        TrainingError: there is none.
    """
    total = {"steps": 0, "tokens": 0, "wall_s": 0.0}
    fits = list[Record]()
    folder: Path | None = start
    while folder is not None:
        path = next((path for path in (folder, folder.parent) if (path / "provenance.json").exists()), None)
        if path is None:
            raise TrainingError(f"start={start}: no provenance.json in {folder} tells how it was trained")
        found = json.loads((path / "provenance.json").read_text())
        stages, before = found["stages"], found["config"].get("start")
        fit = stages.get("fit") or stages["target"]
        fits.insert(0, {name: fit[name] for name in ("steps", "tokens", "wall_s", "train_loss")})
        total = {name: round(total[name] + fit[name], 1) for name in total}
        folder = local_path(before) if before else None
    return {**total, "fits": fits}


def unloop(cfg: TrainConfig, corpus: Corpus, folder: Path, number: int, out: Path) -> Record:
    """A round in which the target unlearns the loops of the outputs that it gives now."""
    before, settings = model_after(folder, number - 1), cfg.unloop
    sizes = replace(cfg.greedy, num_batches=settings.num_batches, minutes=None, top_k=0)
    seed, stops = cfg.seed + number, frozenset([END_OF_TEXT_ID])
    target = CausalLM(move(load_model(before), device_of(cfg)))
    generate_outputs(target, corpus, load_tokenizer(folder), sizes, seed, out / "outputs", stop_ids=stops)
    text, phase = np.load(folder / "tokenizer/train.npy"), settings.fit.phases[0]
    texts = BlockStream(text, Budget(settings.fit), seed)
    objective = Unlikelihood(texts, phase.block, phase.batch, settings.weight)
    stream = OutputStream(out / "outputs", Budget(settings.fit), seed)
    record = fit_model(round_name(number), load_model(before), objective, stream, cfg, None, out)
    figures = {"loop_share_before": loop_share(stream.paths), "heldout_loss": heldout_loss(folder, out / "model")}
    return {**record, **figures}


def heldout_loss(folder: Path, model: Path) -> float:
    """In nats per token."""
    heldout_BT = fixed_blocks(np.load(folder / "tokenizer/heldout.npy"), 512, 64)
    return round(evaluate_loss(load_model(model), heldout_BT), 4)


def load_model(folder: Path) -> LlamaForCausalLM:
    """A model as it ships and is decoded: bfloat16 weights in float32 arithmetic, evaluation mode."""
    return LlamaForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()


def frozen_target(cfg: TrainConfig, folder: Path) -> LlamaForCausalLM:
    """The trained target on the device of the run."""
    model: LlamaForCausalLM = move(load_model(final_target(cfg, folder)), device_of(cfg))
    return model


def final_target(cfg: TrainConfig, folder: Path) -> Path:
    """The folder of the target that is decoded, and that ships."""
    return model_after(folder, cfg.unloop.rounds)


def model_after(folder: Path, num_rounds: int) -> Path:
    """The folder of the target after so many rounds of `unloop`."""
    return folder / (round_name(num_rounds) if num_rounds else "target") / "model"


def round_name(number: int) -> str:
    """The stage of a round."""
    return f"unloop_{number}"


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer that the first stage learned."""
    return PreTrainedTokenizerFast.from_pretrained(str(folder / "tokenizer"))
