"""Hidden states on disk: what heads learn is the same, and only what the disk has room for is written."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from conftest import small_llama
from test_training_resume import curve, settings, write_corpus

from specdec.training import TrainingError, hidden_states, run_task
from specdec.training.config import OutputsConfig, PhaseConfig, TrainConfig
from specdec.training.outputs import load_outputs, without_loops

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_corpus(tmp_path / "text")
    save_target(tmp_path, 0.2)
    monkeypatch.setattr(hidden_states, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path


def save_target(root: Path, initializer_range: float) -> None:
    sizes = {"vocab_size": 2048, "max_position_embeddings": 128, "eos_token_id": 0}
    module = small_llama(0, torch.float32, layers=3, initializer_range=initializer_range, **sizes)
    module.save_pretrained(root / "target")


def heads(root: Path, kind: str, name: str, cached: bool) -> TrainConfig:
    cfg = settings(root, name)
    cfg.task, cfg.heads.kind, cfg.heads.num_heads, cfg.heads.layer = "heads", kind, 2, 1
    cfg.heads.cache_hidden, cfg.distill.data, cfg.distill.on_policy = cached, "outputs", 0.0
    cfg.fit.steps, cfg.fit.accumulate, cfg.fit.ema, cfg.fit.phases = 6, 1, None, [PhaseConfig(1.0, 24, 3)]
    cfg.greedy = OutputsConfig(num_batches=2, batch=6, new_tokens=8, max_prompt_tokens=24)
    cfg.validation.every, cfg.heads.num_anchors = 0, 4
    return cfg


@pytest.mark.parametrize(
    "kind", ["eagle3", *(pytest.param(kind, marks=pytest.mark.nightly) for kind in ("medusa", "eagle", "dspark"))]
)
def test_losses_are_those_without_the_cache(root, kind, monkeypatch):
    run_task("", heads(root, kind, "plain", cached=False))
    run_task("", heads(root, kind, "cached", cached=True))
    plain, cached = ([float(loss) for _, loss, _ in curve(root / name)] for name in ("plain", "cached"))
    torch.testing.assert_close(torch.tensor(cached), torch.tensor(plain), rtol=2e-6, atol=0)
    assert len({round(loss, 3) for loss in plain}) > 2, "the losses tell batches apart"


@pytest.mark.slow
def test_rows_that_are_cut_where_they_loop_are_read_up_to_the_cut(root):
    save_target(root, 0.02)  # which repeats itself in some rows
    for name, cached in (("plain", False), ("cached", True)):
        cfg = heads(root, "eagle3", name, cached)
        cfg.greedy.new_tokens, cfg.greedy.cut_loops = 60, True
        cfg.fit.steps, cfg.fit.phases = 12, [PhaseConfig(1.0, 24, 1)]  # each row once, alone
        run_task("", cfg)
    plain, cached = ([float(loss) for _, loss, _ in curve(root / name)] for name in ("plain", "cached"))
    torch.testing.assert_close(torch.tensor(cached), torch.tensor(plain), rtol=2e-6, atol=0)
    whole = [load_outputs(path) for path in sorted((root / "cached/outputs").glob("batch_*.npz"))]
    assert any((without_loops(rows).num_valid_B < rows.num_valid_B).any() for rows in whole), "none was cut"


@pytest.mark.slow
def test_recipes_share_the_layers_and_the_disk_must_have_room(root, capsys, monkeypatch):
    run_task("", heads(root, "early_exit", "first", cached=True))
    files = {path.name for path in (root / "cache/hidden").rglob("*.safetensors")}
    assert {name.rpartition("-")[2] for name in files} == {"1.safetensors", "3.safetensors"}
    assert len(files) == 2 * 2
    told = capsys.readouterr().out
    assert "GB of hidden states (layers [1, 3])" in told
    assert "[hidden] batch 2 of 2  0.0 min left" in told
    made = {path: path.stat().st_mtime_ns for path in (root / "cache/hidden").rglob("*.safetensors")}
    cfg = heads(root, "medusa", "second", cached=True)
    run_task("", cfg)
    assert {path: path.stat().st_mtime_ns for path in (root / "cache/hidden").rglob("*.safetensors")} == made
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1, 1, 0))
    cfg = heads(root, "eagle3", "third", cached=True)
    with pytest.raises(TrainingError, match=r"heads\.cache_hidden=true: 0\.00 GB .* 0\.0 GB are free: lower greedy"):
        run_task("", cfg)


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("ppd", "outputs", "heads.cache_hidden=true with heads.kind=ppd: the target runs with other inputs"),
        ("medusa", "corpus", "heads.cache_hidden=true with distill.data=corpus: blocks have other borders"),
    ],
)
def test_what_cannot_be_kept_is_refused(root, kind, data, message):
    cfg = heads(root, kind, "refused", cached=True)
    cfg.distill.data = data
    with pytest.raises(TrainingError, match=message):
        run_task("", cfg)
