"""A target's outputs are made once: other runs and recipes take them from the cache."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import small_llama
from test_training_resume import settings, write_corpus

from specdec.training import TrainingError, generation, run_task, shared_outputs
from specdec.training.config import OutputsConfig, PhaseConfig
from specdec.training.outputs import load_outputs
from specdec.training.shared_outputs import shared_file


@pytest.fixture
def made(tmp_path, monkeypatch):
    """How many rows were decoded; with an empty cache."""
    rows = []
    original = generation.outputs_of

    def counted(target, prompts, *rest):
        rows.append(len(prompts))
        return original(target, prompts, *rest)

    monkeypatch.setattr(generation, "outputs_of", counted)
    monkeypatch.setattr(shared_outputs, "cache_folder", lambda: tmp_path / "cache")
    return rows


@pytest.fixture
def root(tmp_path):
    write_corpus(tmp_path / "text")
    sizes = {"vocab_size": 2048, "max_position_embeddings": 128, "initializer_range": 0.2, "pad_token_id": 1}
    for seed in (0, 1):
        small_llama(seed, torch.float32, layers=1, **sizes).save_pretrained(tmp_path / f"target{seed}")
    (tmp_path / "target0").rename(tmp_path / "target")
    return tmp_path


def test_everything_that_decides_outputs_is_in_their_name():
    target = SimpleNamespace(dtype=torch.float32)

    def name(cfg=None, *, target=target, made_by="a", prompts=((1, 2), (3,)), stops=(0,), seed=1):
        prompts = [list(ids) for ids in prompts]
        return shared_file(target, made_by, prompts, cfg or OutputsConfig(), frozenset(stops), seed)

    warm = OutputsConfig(temperature=0.7)
    names = [
        name(),
        name(warm),
        name(warm, seed=2),
        name(OutputsConfig(temperature=1.3)),
        name(OutputsConfig(new_tokens=7)),
        name(OutputsConfig(top_k=3)),
        name(target=SimpleNamespace(dtype=torch.bfloat16)),
        name(made_by="b"),
        name(prompts=((1,), (2, 3))),
        name(stops=(0, 5)),
    ]
    assert len(set(names)) == len(names)
    assert name(seed=2) == name(), "greedy outputs do not depend on the seed"


@pytest.mark.slow
def test_other_runs_of_the_same_target_take_what_was_made(root, made, capsys):
    def run(name, frozen="target", **changed):
        cfg = settings(root, name)
        cfg.frozen, cfg.distill.data, cfg.distill.on_policy = str(root / frozen), "outputs", 0.0
        cfg.fit.steps, cfg.fit.phases = 2, [PhaseConfig(1.0, 24, 2)]
        sizes = {"num_batches": 2, "batch": 4, "new_tokens": 6, "max_prompt_tokens": 12, "top_k": 4}
        cfg.greedy = OutputsConfig(**sizes | changed)
        made.clear()
        run_task("", cfg)
        return [path.read_bytes() for path in sorted((root / name / "outputs").glob("*.npz"))]

    first = run("first")
    assert "[outputs] batch 2 of 2 " in capsys.readouterr().out, "no stage is silent"
    assert made == [4, 4]
    assert run("second") == first
    assert made == []
    run("other_target", frozen="target1")
    assert made == [4, 4]
    run("warmer", temperature=0.7)
    assert made == [4, 4]
    run("asked_again", top_k=0)  # the target, in training
    assert made == [], "what is kept of the target's distribution does not change what it says"
    fewer = run("fewer", top_k=2)
    assert made == []
    assert len(fewer) == len(first)
    assert _kept(root / "fewer", 2) == _kept(root / "first", 2)
    for path in (root / "cache/outputs").rglob("*.npz"):
        path.unlink()
    assert run("fewer_first", top_k=2) == fewer
    assert made == [4, 4]
    assert run("then_all") == first
    assert made == []
    config = root / "target/config.json"
    shutil.copytree(root / "target", root / "rotated")
    (root / "rotated/config.json").write_text(config.read_text().replace('"rope_theta": 10000.0', '"rope_theta": 50.0'))
    assert (root / "rotated/config.json").read_text() != config.read_text()
    run("same_weights", frozen="rotated")
    assert made == [4, 4], "other positions, other outputs"
    (root / "target").rename(root / "moved")
    run("another_place", frozen="moved")
    assert made == []
    (root / "moved").rename(root / "target")
    for path in (root / "cache/outputs").rglob("*.npz"):
        path.write_bytes(path.read_bytes()[:100])  # the runs' own files share these bytes
    assert run("third") == first, "damaged files of the cache are made again"
    assert made == [4, 4]
    run("fourth")
    assert made == []


def test_one_folder_holds_outputs_of_one_number_format(tmp_path):
    """A checkpoint in bfloat16 has one fingerprint, whatever it is loaded in."""
    generation.check_made_by(tmp_path, "a", "torch.float32")
    generation.check_made_by(tmp_path, "a", "torch.float32")
    with pytest.raises(TrainingError, match=r"holds outputs of another target \(a torch.float32\): set force=true"):
        generation.check_made_by(tmp_path, "a", "torch.bfloat16")
    (tmp_path / "target.json").write_text('{"made_by": "a"}')  # as older versions wrote it
    generation.check_made_by(tmp_path, "a", "torch.bfloat16")
    with pytest.raises(TrainingError, match=r"another target \(a torch.bfloat16\)"):
        generation.check_made_by(tmp_path, "b", "torch.bfloat16")


def _kept(folder, count):
    """Ids and log-probabilities of the most probable tokens in a run's files."""
    outputs = [load_outputs(path) for path in sorted((folder / "outputs").glob("*.npz"))]
    return [(part.top_ids_BNK[..., :count].tolist(), part.top_logps_BNK[..., :count].tolist()) for part in outputs]


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path):
    source, blocked = tmp_path / "a.npz", tmp_path / "file"
    source.write_bytes(b"a")
    blocked.write_bytes(b"b")
    assert not shared_outputs.share(source, blocked / "b.npz")
    assert not shared_outputs.share(tmp_path / "none.npz", tmp_path / "b.npz")
    assert shared_outputs.share(source, tmp_path / "deep/b.npz")
    assert (tmp_path / "deep/b.npz").read_bytes() == b"a"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "deep", "file"]
