"""Runs that are killed, resumed, or given what they cannot use."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import small_llama
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from specdec.config.explain import explain
from specdec.training import TrainingError, run_task
from specdec.training.config import PhaseConfig, TrainConfig, ValidationConfig
from specdec.training.corpus import read_corpus
from specdec.training.corpus_config import CorpusConfig

TOKENIZER = "asset:tiny/tokenizer"


def write_corpus(folder: Path) -> None:
    """A few lines that can be learned, in as many documents as there must be."""
    folder.mkdir()
    for index in range(40):
        lines = [f"line {number} of document {index}: the value is {number * index}\n" for number in range(40)]
        (folder / f"{index}.txt").write_text("".join(lines))


def settings(root: Path, name: str) -> TrainConfig:
    """Everything that a resume has to get right at once: EMA, accumulation, on-policy batches, validation."""
    cfg = TrainConfig(task="distill", frozen=str(root / "target"), tokenizer=TOKENIZER, precision="32-true")
    cfg.output_dir, cfg.threads, cfg.progress, cfg.device.accelerator = str(root / name), 1, False, "cpu"
    cfg.corpus = CorpusConfig(source="text", path=str(root / "text"), heldout_percent=20)
    cfg.draft_model.num_layers, cfg.draft_model.hidden_size, cfg.draft_model.intermediate_size = 1, 24, 32
    cfg.draft_model.num_heads, cfg.draft_model.num_kv_heads, cfg.new_draft = 2, 1, "random"
    cfg.fit.steps, cfg.fit.warmup_steps, cfg.fit.checkpoint_every, cfg.fit.accumulate = 40, 4, 5, 2
    cfg.fit.ema, cfg.fit.phases = 0.8, [PhaseConfig(0.6, 24, 3), PhaseConfig(0.4, 40, 2)]
    cfg.distill.data, cfg.distill.on_policy, cfg.distill.on_policy_tokens, cfg.distill.tv = "corpus", 0.5, 4, 1.0
    cfg.heldout.num_prompts, cfg.heldout.max_tokens = 4, 40
    cfg.validation = ValidationConfig(every=7, num_prompts=2, new_tokens=6, gamma=2, batch=2)
    cfg.log.every, cfg.keep = 1, "last"
    return cfg


def run(root: str, name: str) -> None:
    """Called by the process that is killed."""
    run_task("", settings(Path(root), name))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    write_corpus(folder / "text")
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    sizes = {"vocab_size": 2048, "max_position_embeddings": 128, "initializer_range": 0.2}
    small_llama(0, torch.float32, layers=1, **sizes, **special).save_pretrained(folder / "target")
    return folder


def curve(folder: Path) -> list[tuple[str, str, str]]:
    with (folder / "fit/metrics.csv").open() as stream:
        return [(line["step"], line["loss"], line["lr"]) for line in csv.DictReader(stream)]


@pytest.mark.slow
def test_killed_and_resumed_ends_with_the_same_bits(root):
    run_task("", settings(root, "whole"))
    tests = Path(__file__).parent
    code = (
        f"import sys; sys.path.insert(0, {str(tests)!r}); import test_training_resume as t; t.run({str(root)!r}, 'cut')"
    )
    metrics = root / "cut/fit/metrics.csv"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tests.parent, start_new_session=True)
    try:
        deadline = time.monotonic() + 240
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > 13):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (root / "cut/fit/record.json").exists()
    begun = len(curve(root / "cut"))
    assert 12 < begun < 40
    run_task("", settings(root, "cut"))
    assert curve(root / "cut") == curve(root / "whole")
    for name in ("fit/last.ckpt",):
        ours, theirs = (torch.load(root / run / name, weights_only=True) for run in ("cut", "whole"))
        for part in ("state_dict", "optimizer_states", "lr_schedulers"):
            assert same(ours[part], theirs[part]), part
    bytes_of = [(root / run / "export/model.safetensors").read_bytes() for run in ("cut", "whole")]
    assert bytes_of[0] == bytes_of[1]
    assert AutoModelForCausalLM.from_pretrained(root / "cut/export").config.vocab_size == 2048
    assert "acceptance rate" in (root / "cut/export/README.md").read_text()


def same(ours: object, theirs: object) -> bool:
    """Equal to the bit, through any nesting."""
    if isinstance(ours, torch.Tensor):
        return isinstance(theirs, torch.Tensor) and torch.equal(ours, theirs)
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs


@pytest.mark.nightly
def test_two_devices_learn_what_one_learns_from_the_same_rows(root):
    """Two processes with half of the batch each: the same losses and weights, up to the order of sums."""
    shape = "draft_model={num_layers: 1, hidden_size: 24, intermediate_size: 32, num_heads: 2, num_kv_heads: 1}"
    config = AutoModelForCausalLM.from_pretrained(root / "target").config
    config.eos_token_id = list(range(0, 2048, 16))  # outputs of many lengths: the devices count different tokens
    LlamaForCausalLM(config).save_pretrained(root / "stopping")
    for devices, rows in ((1, 8), (2, 4)):
        command = [
            *(sys.executable, "train.py", "task=distill", "new_draft=random", shape),
            *(f"frozen={root / 'stopping'}", f"tokenizer={TOKENIZER}"),
            *("precision=32-true", "threads=1", "progress=false", "keep=last", "validation.every=0", "log.every=1"),
            *("corpus.source=text", f"corpus.path={root / 'text'}", "corpus.heldout_percent=20"),
            *("heldout.max_tokens=40", "heldout.num_prompts=4"),
            *("validation.num_prompts=2", "validation.new_tokens=4", "distill.data=outputs"),
            *("greedy.num_batches=2", "greedy.batch=12", "greedy.new_tokens=16", "greedy.max_prompt_tokens=12"),
            *("fit.steps=6", "fit.warmup_steps=1", f"fit.phases=[{{share: 1.0, block: 24, batch: {rows}}}]"),
            *("device.accelerator=cpu", f"device.devices={devices}", "device.strategy=" + ("auto", "ddp")[devices - 1]),
            f"output_dir={root / f'devices{devices}'}",
        ]
        subprocess.run(command, cwd=Path(__file__).parent.parent, check=True, capture_output=True)
    one, two = (curve(root / f"devices{devices}") for devices in (1, 2))
    assert [line[0] for line in one] == [line[0] for line in two] == [str(step) for step in range(1, 7)]
    weights = [
        AutoModelForCausalLM.from_pretrained(root / f"devices{devices}/fit/model").state_dict() for devices in (1, 2)
    ]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=1e-3, atol=1e-5)
    records = [json.loads((root / f"devices{devices}/fit/record.json").read_text()) for devices in (1, 2)]
    assert records[0]["tokens"] == records[1]["tokens"] > 0


def test_stops_early_and_keeps_the_best(root):
    cfg = settings(root, "early")
    cfg.fit.lr, cfg.fit.ema, cfg.keep = 1e-12, None, "best"  # nothing can get better
    cfg.validation.every, cfg.validation.patience = 3, 2
    report = run_task("", cfg)
    assert report["steps"] == 9  # the first measurement is the best, two more without a better one
    measured = [json.loads(line) for line in (root / "early/fit/validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in measured] == [3, 6, 9]
    assert json.loads((root / "early/fit/record.json").read_text())["kept_step"] == 3
    assert {"acceptance_by_place", "categories", "predicted_speedup"} <= set(measured[0])


def test_a_damaged_checkpoint_is_one_line(root):
    cfg = settings(root, "damaged")
    (root / "damaged/fit").mkdir(parents=True)
    (root / "damaged/fit/last.ckpt").write_bytes(b"PK\x03\x04 no longer a checkpoint")
    with pytest.raises(TrainingError, match=r"last.ckpt is no checkpoint that can be read .*delete it"):
        run_task("", cfg)


def test_a_full_disk_is_one_line(root):
    cfg = settings(root, "full")
    (root / "full/fit").mkdir(parents=True)
    (root / "full/fit/last.ckpt.partial").symlink_to("/dev/full")  # every write to it fails: no space left
    cfg.validation.every, cfg.fit.steps = 0, 5
    with pytest.raises(OSError, match="No space left") as caught:
        run_task("", cfg)
    message = explain(caught.value)
    assert "space" in message
    assert "last.ckpt" in message
    assert "\n" not in message
    assert not (root / "full/fit/last.ckpt").exists()


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(root):
    cfg = settings(root, "infinite")
    cfg.fit.steps = 2000
    cfg.fit.checkpoint_every, cfg.fit.clip, cfg.validation.every, cfg.fit.ema = 1, 0.0, 0, None
    cfg.fit.lr, cfg.fit.warmup_steps, cfg.fit.schedule = 1e36, 10_000, "constant"  # grows until something overflows
    with pytest.raises(TrainingError, match=r"distill: .* at step \d+ \(data up to batches \d+, .*last good"):
        run_task("", cfg)
    kept = torch.load(root / "infinite/fit/last.ckpt", weights_only=True)
    assert kept["global_step"] >= 1
    assert all(bool(torch.isfinite(value).all()) for value in kept["state_dict"].values())


def test_a_vocabulary_that_does_not_match_is_one_line(root):
    config = AutoModelForCausalLM.from_pretrained(root / "target").config
    config.vocab_size = 300
    LlamaForCausalLM(config).save_pretrained(root / "small")
    cfg = settings(root, "vocabulary")
    cfg.frozen = str(root / "small")
    with pytest.raises(TrainingError, match=r"the tokenizer has 2048 tokens but the vocabulary of frozen=.* is 300"):
        run_task("", cfg)
    cfg = settings(root, "vocabulary")
    cfg.start = str(root / "small")
    with pytest.raises(TrainingError, match=r"start=.* has a vocabulary of 300 tokens, the target one of 2048"):
        run_task("", cfg)


def test_sources_of_text(tmp_path, monkeypatch):
    import pandas

    texts = [f"document number {index} says something\n" for index in range(80)]
    frame = pandas.DataFrame({"body": texts})
    frame.to_json(tmp_path / "some.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "some.parquet")
    (tmp_path / "some.hub").mkdir()  # a data set's folder is loaded as one of the Hub is
    frame.to_parquet(tmp_path / "some.hub/train.parquet")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    found = [
        read_corpus(
            CorpusConfig(source=source, path=str(tmp_path / f"some.{source}"), column="body", heldout_percent=20)
        )
        for source in ("jsonl", "parquet", "hub")
    ]
    assert found[0].sha256 == found[1].sha256 == found[2].sha256
    assert sorted(file.text for file in [*found[0].train, *found[0].heldout]) == sorted(texts)
    assert not found[0].is_code
    with pytest.raises(TrainingError, match=r"corpus\.column=text is no column of .*; there are body"):
        read_corpus(CorpusConfig(source="jsonl", path=str(tmp_path / "some.jsonl")))
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(TrainingError, match=r"corpus.path=.*empty.txt (holds no text|cannot be loaded)"):
        read_corpus(CorpusConfig(source="text", path=str(tmp_path / "empty.txt")))
    with pytest.raises(TrainingError, match="cannot be loaded as parquet"):
        read_corpus(CorpusConfig(source="parquet", path=str(tmp_path / "absent.parquet")))
    with pytest.raises(TrainingError, match=r"corpus\.source=xml is unknown"):
        read_corpus(CorpusConfig(source="xml", path="x"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cfg: setattr(cfg, "task", "tune"), "task=tune is unknown"),
        (lambda cfg: setattr(cfg, "keep", "all"), "keep=all: choose best"),
        (lambda cfg: setattr(cfg.fit, "schedule", "stairs"), "schedule=stairs is unknown"),
        (lambda cfg: setattr(cfg.distill, "data", "dreams"), "distill.data=dreams is unknown"),
        (lambda cfg: setattr(cfg, "frozen", "./nowhere"), "frozen=./nowhere"),
    ],
)
def test_wrong_settings_are_one_line(root, change, message, tmp_path):
    cfg = settings(root, "wrong")
    cfg.output_dir = str(tmp_path)
    change(cfg)
    with pytest.raises(TrainingError, match=message) as caught:
        run_task("", cfg)
    assert "\n" not in str(caught.value)
