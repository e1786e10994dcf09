"""What a fit cannot use: rows beyond a context, damaged files, corpora that are too small; and what it records."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb
from conftest import small_llama
from test_training_resume import settings, write_corpus
from test_training_steps import Rows
from transformers import GPT2Config, GPT2LMHeadModel

from specdec.models.causal_lm import CausalLM
from specdec.training import TrainingError, run_task
from specdec.training.blocks import BlockStream
from specdec.training.budget import Budget
from specdec.training.checkpoints import LAST, read_checkpoint
from specdec.training.config import OutputsConfig, PhaseConfig, StageConfig, TrainConfig
from specdec.training.corpus import read_corpus
from specdec.training.corpus_config import CorpusConfig
from specdec.training.export import settings_record
from specdec.training.generation import outputs_of, with_log_probs
from specdec.training.loop import fit
from specdec.training.losses import LossSum
from specdec.training.module import Objective, TrainingModule
from specdec.training.objectives import next_token
from specdec.training.outputs import OutputStream, load_outputs, save_outputs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("limits")
    write_corpus(folder / "text")
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    sizes = {"vocab_size": 2048, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    GPT2LMHeadModel(GPT2Config(**sizes, **special)).save_pretrained(folder / "target")
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cfg: None, r"heldout.max_tokens \+ validation.new_tokens = 86; block of fit.phases = 80$"),
        (lambda cfg: setattr(cfg, "task", "heads"), r"block of fit.phases = 80$"),
        (lambda cfg: setattr(cfg.distill, "data", "outputs"), r"greedy.max_prompt_tokens \+ greedy.new_tokens = 448$"),
        (lambda cfg: setattr(cfg.distill, "on_policy", 0.5), r"prompt \+ distill.on_policy_tokens = 104$"),
    ],
)
def test_rows_beyond_the_context_are_refused(root, change, message):
    """A GPT-2 has learned positions: past them there are none."""
    cfg = settings(root, "long")
    cfg.fit.phases, cfg.heldout.max_tokens = [PhaseConfig(1.0, 80, 2)], 80
    cfg.distill.on_policy, cfg.distill.on_policy_tokens = 0.0, 64
    change(cfg)
    with pytest.raises(TrainingError, match=rf"frozen=.* has a context of 64 tokens: lower .*{message}"):
        run_task("", cfg)


def fitted(folder: Path, steps: int, cfg: TrainConfig, objective: Objective = next_token) -> TrainingModule:
    folder.mkdir(exist_ok=True)
    cfg.fit.steps, cfg.fit.ema, cfg.fit.accumulate, cfg.fit.phases = steps, None, 1, [PhaseConfig(1.0, 20, 4)]
    model = small_llama(1, torch.float32, layers=1)
    module = TrainingModule("lm", model, objective, Rows(Budget(cfg.fit), 4))
    fit(module, folder, cfg)
    return module


def test_every_byte_of_a_checkpoint_is_checked(tmp_path):
    fitted(tmp_path / "fit", 2, settings(tmp_path, ""))
    path = tmp_path / "fit" / LAST
    whole = path.read_bytes()
    weight = read_checkpoint(path)["state_dict"]["model.model.embed_tokens.weight"]
    place = whole.index(weight.numpy().tobytes()) + 40
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(TrainingError, match=r"last.ckpt is no checkpoint that can be read \(BadZipFile: the checksum"):
        read_checkpoint(path)
    for size in (len(whole) // 2, len(whole) - 10, 0):
        path.write_bytes(whole[:size])
        with pytest.raises(TrainingError, match=r"last.ckpt is no checkpoint that can be read .*delete it to start"):
            read_checkpoint(path)


def test_every_byte_of_cached_outputs_is_checked(tmp_path):
    target = CausalLM(small_llama(0, torch.float32))
    cfg = OutputsConfig(new_tokens=6, top_k=4)
    made = with_log_probs(target, outputs_of(target, [[1, 2, 3], [4, 5]], cfg, frozenset(), 0), cfg)
    save_outputs(made, tmp_path / "batch_0000.npz", 61)
    path = tmp_path / "batch_0000.npz"
    whole = path.read_bytes()
    with np.load(path) as arrays:
        place = whole.index(arrays["top_logps"].tobytes())
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(TrainingError, match=r"batch_0000.npz is damaged \(BadZipFile\): delete it and record.json"):
        load_outputs(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainingError, match=r"batch_0000.npz is damaged"):
        OutputStream(tmp_path, Budget(StageConfig()), 0)


def test_corpora_that_are_too_small_say_what_to_change(tmp_path):
    (tmp_path / "one.txt").write_text("a single document of a few words")
    with pytest.raises(TrainingError, match=r"one.txt yields . training and . held-out files .*corpus.heldout_percent"):
        read_corpus(CorpusConfig(source="text", path=str(tmp_path / "one.txt")))
    with pytest.raises(TrainingError, match=r"corpus has 20 tokens, .*block=256: lower the blocks of fit.phases"):
        BlockStream(np.arange(20), Budget(StageConfig()), 0)


def test_records_name_folders_by_their_whole_path(root, monkeypatch):
    monkeypatch.chdir(root)
    record = settings_record(TrainConfig(frozen="target", corpus=CorpusConfig(path="text"), tokenizer="asset:tiny"))
    assert record["frozen"] == str((root / "target").resolve())
    assert record["corpus"]["path"] == str((root / "text").resolve())
    assert record["tokenizer"] == "asset:tiny"


def test_an_interrupted_fit_says_so(tmp_path):
    """Lightning would end the process with code 1; the command line has a line and a code for Ctrl-C."""

    def interrupt(model: object, batch: object, step: int) -> LossSum:
        if step == 2:
            raise KeyboardInterrupt
        return next_token(model, batch, step)

    cfg = settings(tmp_path, "")
    cfg.fit.checkpoint_every = 1
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "fit", 4, cfg, interrupt)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert read_checkpoint(tmp_path / "fit" / LAST)["global_step"] == 2


@pytest.mark.slow
def test_a_resumed_fit_goes_on_in_its_weights_and_biases_run(tmp_path, monkeypatch):
    """Offline whatever the process did before: here W&B has read the environment once, and no key is known."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    wandb.setup()
    cfg = settings(tmp_path, "")
    cfg.log.wandb = "offline"
    for steps in (2, 4):
        module = fitted(tmp_path / "fit", steps, cfg)
    assert len(module.losses) == 4
    run_id = json.loads((tmp_path / "fit/wandb.json").read_text())["id"]
    folders = sorted((tmp_path / "fit/wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert all(f"-{run_id}" in folder.name for folder in folders)
    assert any(b"warmup_steps" in path.read_bytes() for path in folders[0].glob("*.wandb"))
    cfg.log.wandb = "online"
    with pytest.raises(TrainingError, match=r"log.wandb=online: .*; set WANDB_API_KEY, or log.wandb=offline"):
        fitted(tmp_path / "fit", 6, cfg)
