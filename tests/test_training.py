"""The training recipe at rehearsal size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import command
from jinja2 import UndefinedError
from transformers import AutoModelForCausalLM, AutoTokenizer

import specdec
from experiments.tiny_pair.export import CARD
from experiments.tiny_pair.recipe import load_model, train_tiny
from specdec.cli.train import main as train
from specdec.drafters.model import ModelDrafter
from specdec.models.causal_lm import CausalLM
from specdec.training import TrainingError, run_recipe
from specdec.training.acceptance import HeldoutPrompt, measure_acceptance
from specdec.training.budget import Budget
from specdec.training.card import model_card
from specdec.training.config import DeviceConfig, StageConfig, TrainConfig, ValidationConfig
from specdec.training.corpus import read_corpus
from specdec.training.corpus_config import CorpusConfig
from specdec.training.device import precision_of
from specdec.training.heldout import read_prompts
from specdec.training.resolve import shrink_to_rehearse
from train import RECIPES

ASSETS = Path(specdec.__file__).parent / "assets"
TINY = ASSETS / "tiny"
ROOT = ASSETS.parent.parent


def rehearsal(folder: Path) -> TrainConfig:
    cfg = shrink_to_rehearse(TrainConfig(output_dir=str(folder), progress=False, threads=1))
    cfg.device.accelerator = "cpu"
    cfg.corpus.root, cfg.corpus.heldout_percent = str(folder / "corpus"), 20
    cfg.vocab_size = 400
    return cfg


def write_corpus(folder: Path, num_files: int = 60) -> None:
    """Small programs with every kind of prompt start."""
    (folder / "corpus").mkdir()
    for index in range(num_files):
        lines = [f'"""Module number {index} of a small corpus."""', "import os", ""]
        for name in ("alpha", "beta", "gamma", "delta", "epsilon"):
            lines += [f"class {name.title()}{index}:", f'    """Holds a {name} value of module."""', ""]
            lines += [f"    def get_{name}(self, value):", "        # The value is returned as it is", ""]
            lines += [
                "        if value is None:",
                f"            return self.{name}",
                "        return value",
                "",
            ]
            lines += [
                f"    def test_{name}(self):",
                f"        self.assertEqual(self.get_{name}(None), None)",
                "",
            ]
        (folder / "corpus" / f"module_{index}.py").write_text("\n".join(lines) * 3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("train")
    write_corpus(folder)
    return folder, train_tiny(rehearsal(folder))


def test_recipe_trains_and_exports(trained):
    folder, report = trained
    export = folder / "export" / "tiny"
    assert report["num_drafted"] > 0
    assert 0.0 <= report["acceptance_rate"] <= 1.0
    tokenizer = AutoTokenizer.from_pretrained(export / "tokenizer")
    text = "class Alpha:\n\tdef f(self): return '\u00e9'\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    for role in ("target", "draft"):
        model = AutoModelForCausalLM.from_pretrained(export / role)
        assert model.dtype == torch.float32
        assert model.config.vocab_size == len(tokenizer)
        assert model.generation_config.do_sample is False
    assert "acceptance rate" in (export / "README.md").read_text()
    assert (folder / "export" / "heldout.jsonl").exists()


def test_target_learns(trained):
    record = json.loads((trained[0] / "target" / "record.json").read_text())
    assert record["steps"] == 8
    assert record["loss_curve"][-1] < record["loss_curve"][0]


def test_rerun_skips_finished_stages(trained, capsys):
    folder, report = trained
    weights = (folder / "export" / "tiny" / "target" / "model.safetensors").read_bytes()
    assert train_tiny(rehearsal(folder)) == report
    assert capsys.readouterr().out.count("done before") == 9
    assert (folder / "export" / "tiny" / "target" / "model.safetensors").read_bytes() == weights


def test_a_run_with_other_settings_does_not_take_finished_stages_for_its_own(trained):
    cfg = rehearsal(trained[0])
    cfg.target.lr, cfg.greedy.new_tokens, cfg.progress = 0.5, 13, True  # the last decides nothing
    with pytest.raises(TrainingError, match=r"\(target\.lr=.* there, 0\.5 now, greedy\.new_tokens=12 there, 13 now\)"):
        train_tiny(cfg)


@pytest.mark.slow
def test_interrupted_stage_resumes_from_its_checkpoint(trained, tmp_path):
    cfg = rehearsal(trained[0])
    cfg.output_dir, cfg.stages, cfg.target.steps = str(tmp_path), ["tokenizer", "target"], 4
    train_tiny(cfg)
    (tmp_path / "target" / "record.json").unlink()
    cfg.target.steps = 8
    resumed = train_tiny(cfg)["target"]
    assert resumed["steps"] == 8
    assert len(resumed["loss_curve"]) == 8  # the steps before the checkpoint are part of it


def test_non_finite_loss_names_the_step(trained, tmp_path):
    cfg = rehearsal(trained[0])
    cfg.output_dir, cfg.stages = str(tmp_path), ["tokenizer", "target"]
    cfg.target.lr, cfg.target.clip, cfg.target.warmup_steps = 1e30, 0.0, 0
    with pytest.raises(TrainingError, match=r"target: .* at step \d+ \(data up to .*\); lower lr=.*last good"):
        train_tiny(cfg)


def test_vocabulary_larger_than_the_corpus_yields(trained, tmp_path):
    cfg = rehearsal(trained[0])
    cfg.output_dir, cfg.vocab_size = str(tmp_path), 2048
    with pytest.raises(TrainingError, match="vocab_size=2048 is more than the corpus yields"):
        train_tiny(cfg)


def test_bad_input_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match="yields 0 training and 0 held-out files"):
        read_corpus(CorpusConfig(root=str(tmp_path / "empty")))
    with pytest.raises(TrainingError, match="is not a folder"):
        read_corpus(CorpusConfig(root=str(tmp_path / "absent")))
    with pytest.raises(TrainingError, match="pair=nothing has no training recipe"):
        run_recipe("nothing", TrainConfig(), RECIPES)
    write_corpus(tmp_path)
    cfg = rehearsal(tmp_path)
    cfg.stages = ["targte"]
    with pytest.raises(TrainingError, match="stages=targte is not a stage"):
        train_tiny(cfg)


@torch.inference_mode()
def decode_by_rounds(target, draft, ids, new_tokens, gamma):
    """Greedy speculative decoding without a cache, to the letter: (drafted, accepted) per round, and the output."""
    start, rounds = len(ids), []
    while (left := new_tokens - (len(ids) - start)) > 0:
        drafted = []
        for _ in range(min(gamma, left - 1)):
            drafted.append(int(draft(torch.tensor([ids + drafted])).logits[0, -1].argmax()))
        chosen = target(torch.tensor([ids + drafted])).logits[0, len(ids) - 1 :].argmax(-1).tolist()
        accepted = next((i for i, token in enumerate(drafted) if token != chosen[i]), len(drafted))
        rounds.append((len(drafted), accepted))
        ids = ids + chosen[: accepted + 1]
    return rounds, ids[start:]


def test_measured_acceptance_is_that_of_real_rounds():
    target, draft = load_model(TINY / "target"), load_model(TINY / "draft")
    target.generation_config.eos_token_id = None  # the oracle knows no stop
    tokenizer = AutoTokenizer.from_pretrained(TINY / "tokenizer")
    prompts = read_prompts(ASSETS / "heldout.jsonl")[:27:9]
    encoded = [HeldoutPrompt(tokenizer(p["turns"][0]).input_ids, p["category"]) for p in prompts]
    found = measure_acceptance(
        CausalLM(target), ModelDrafter, encoded, ValidationConfig(new_tokens=12, batch=2), draft=CausalLM(draft)
    )
    rounds = [decode_by_rounds(target, draft, prompt.ids, 12, 5)[0] for prompt in encoded]
    flat = [counts for row in rounds for counts in row]
    assert found["num_rounds"] == len(flat)
    assert found["num_drafted"] == sum(drafted for drafted, _ in flat)
    assert found["num_accepted"] == sum(accepted for _, accepted in flat)
    reached = [accepted >= 1 for drafted, accepted in flat if drafted >= 1]
    assert found["acceptance_by_place"][0] == round(sum(reached) / len(reached), 4)
    for prompt, row in zip(encoded, rounds, strict=True):
        assert found["categories"][prompt.category]["num_rounds"] == len(row)  # each of a category of its own


def test_budget_ends_by_steps_or_by_the_clock():
    by_steps = Budget(StageConfig(steps=10, minutes=60), step=10)
    by_clock = Budget(StageConfig(steps=10, minutes=1), step=1, earlier_s=61.0)
    by_clock.start()
    assert by_steps.fraction == by_clock.fraction == 1.0
    assert by_steps.lr_factor(10) == pytest.approx(0.05 * 11 / 100)  # still in warmup: 10 steps of 100
    endless = Budget(StageConfig(steps=10, minutes=None), step=1, earlier_s=1e9)
    endless.start()
    assert endless.fraction == 0.1


def test_precision_follows_the_processor_unless_named(monkeypatch):
    cfg = TrainConfig(device=DeviceConfig(accelerator="cpu"))
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert precision_of(cfg) == "bf16-mixed"
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert precision_of(cfg) == "32-true"
    cfg.precision = "64-true"
    assert precision_of(cfg) == "64-true"


@pytest.mark.slow
def test_help_is_quick_and_torch_free():
    code = "import sys, specdec.cli.train; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    shown = subprocess.run(
        [sys.executable, "train.py", "--cfg", "job", "pair=tiny"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "target_model:" in shown.stdout


@pytest.mark.parametrize("override", ["target.stpes=3", "pair=nothing", "corpus.root=/nowhere"])
def test_wrong_setting_is_one_line(override, capsys):
    assert command(lambda: train(RECIPES), override) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_without_the_repository_a_recipe_is_refused_in_one_line(capsys):
    assert command(train, "pair=tiny") == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "pair=tiny has no training recipe; recipes are in the repository" in line


def test_a_model_card_without_one_of_its_figures_is_refused(trained):
    record = json.loads((trained[0] / "export/tiny/provenance.json").read_text())
    card = (trained[0] / "export/tiny/README.md").read_text()
    assert model_card(record, CARD) == card
    config = json.loads((trained[0] / "export/tiny/draft/config.json").read_text())
    widths = "{num_hidden_layers} x {hidden_size} ({intermediate_size}) |\n".format(**config)
    assert widths in card, "also where the draft's widths are not set, but follow from the target's"
    del record["acceptance"]["gamma"]
    with pytest.raises(UndefinedError, match="gamma"):
        model_card(record, CARD)
