"""Training for a target that torchrun's processes hold in parts: the losses and acceptance of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import small_llama
from test_training_resume import TOKENIZER, curve, settings, write_corpus

from specdec.training import TrainingError, run_task
from specdec.training.split import check_copied, others_may_fail

SPLIT = ("device.devices=2", "device.strategy=ddp", "device.tensor_parallel=true")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("split")
    write_corpus(folder / "text")
    sizes = {"vocab_size": 2048, "max_position_embeddings": 128, "initializer_range": 0.2}
    for seed, name in ((0, "target"), (1, "other")):
        small_llama(seed, torch.float64, layers=2, **sizes, eos_token_id=0).save_pretrained(folder / name)
    return folder


def train(root: Path, name: str, rows: int, *words: str, launcher: tuple[str, ...] = ()) -> dict:
    """Six steps on the command line; returns what it printed last."""
    command = [
        *(sys.executable, *launcher, "train.py", *words, f"frozen={root / 'target'}", f"tokenizer={TOKENIZER}"),
        *(f"output_dir={root / name}", "precision=64-true", "threads=1", "progress=false", "log.every=1"),
        *("corpus.source=text", f"corpus.path={root / 'text'}", "corpus.heldout_percent=20"),
        *("heldout.max_tokens=40", "heldout.num_prompts=4", "validation.num_prompts=4", "validation.new_tokens=12"),
        *("validation.every=3", "validation.batch=3", "validation.gamma=3", "device.accelerator=cpu"),
        *("greedy.num_batches=2", "greedy.batch=6", "greedy.new_tokens=12", "greedy.max_prompt_tokens=40"),
        *("fit.steps=6", "fit.warmup_steps=1", f"fit.phases=[{{share: 1.0, block: 24, batch: {rows}}}]"),
    ]
    environ = {**os.environ, "SPECDEC_CACHE": str(root / name / "cache")}
    here = Path(__file__).parent.parent
    result = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False, env=environ)
    assert result.returncode == 0, result.stderr
    return json.loads([line for line in result.stdout.splitlines() if line.startswith("{")][-1])


def both(root: Path, name: str, *words: str) -> tuple[dict, dict]:
    """One process, and two with half of the target and of the rows each; the losses must be the same."""
    alone = train(root, f"{name}_one", 4, *words)
    split = train(root, f"{name}_two", 2, *words, *SPLIT, launcher=TORCHRUN)
    one, two = (torch.tensor([float(loss) for _, loss, _ in curve(root / f"{name}_{n}")]) for n in ("one", "two"))
    assert len(one) == 6
    torch.testing.assert_close(two, one, rtol=1e-6, atol=0)
    return alone, split


COUNTS = ("num_rounds", "num_drafted", "num_accepted", "num_tokens", "acceptance_by_place")


@pytest.mark.nightly
@pytest.mark.parametrize("cached", ["true", "false"])
def test_a_head_learns_what_one_process_teaches_it(root, cached):
    """Outputs, hidden states, fit, validation and the measurement of the end, each with both halves of the target."""
    words = ("task=heads", "heads.kind=dspark", "heads.num_heads=2", f"heads.cache_hidden={cached}")
    alone, split = both(root, f"heads_{cached}", *words)
    assert [split[key] for key in COUNTS] == [alone[key] for key in COUNTS]
    provenance = [json.loads((Path(told["export"]) / "provenance.json").read_text()) for told in (alone, split)]
    assert provenance[0]["target_fingerprint"] == provenance[1]["target_fingerprint"], "of the whole weights"
    assert (
        provenance[1]["stages"]["outputs"]["output_tokens"] == provenance[0]["stages"]["outputs"]["output_tokens"] > 0
    )


@pytest.mark.nightly
def test_a_copied_split_target_accepts_everything(root):
    """The export keeps half of the digits, so a few tokens may differ then."""
    words = ("task=distill", "new_draft=target", "draft_model.num_layers=2", "fit.lr=0.0", "distill.data=corpus")
    alone, split = both(root, "copied", *words)
    assert [split[key] for key in COUNTS] == [alone[key] for key in COUNTS]
    lines = (root / "copied_two/fit/validation.jsonl").read_text().splitlines()
    assert [json.loads(line)["acceptance_rate"] for line in lines] == [1.0, 1.0]
    assert (Path(split["export"]) / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "lm"}, "device.tensor_parallel=true with task=lm: it is for task=distill and task=heads"),
        ({}, r"run `torchrun --nproc-per-node=N train.py device.devices=N .* \(processes: 1, device.devices: 1\)"),
    ],
)
def test_what_cannot_be_split_is_refused(root, change, message):
    cfg = replace(settings(root, "refused"), **change)
    cfg.device.tensor_parallel = True
    with pytest.raises(TrainingError, match=message):
        run_task("", cfg)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cfg: setattr(cfg.device, "strategy", "fsdp"), "device.strategy=fsdp: drafts are whole"),
        (lambda cfg: (setattr(cfg, "task", "heads"), setattr(cfg.heads, "kind", "ppd")), "heads.kind=ppd: it needs"),
    ],
)
def test_what_two_processes_cannot_do_is_refused(root, change, message, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    monkeypatch.setenv("WORLD_SIZE", "2")
    cfg = settings(root, "refused")
    cfg.device.tensor_parallel, cfg.device.devices, cfg.fit.ema = True, 2, None
    change(cfg)
    with pytest.raises(TrainingError, match=message):
        run_task("", cfg)


def test_layers_that_are_split_in_an_unknown_way_are_not_copied():
    module = small_llama(0, torch.float32)
    ends = {"model.embed_tokens": "replicate", "lm_head": "replicate"}
    module.tp_plan = {**module.tp_plan, **ends, "layers.*.self_attn.q_norm": "replicated_with_grad_allreduce"}
    check_copied(module)
    module.tp_plan = {**module.tp_plan, "layers.*.mlp.gate_up_proj": "packed_colwise"}
    with pytest.raises(TrainingError, match=r"split in a way \(packed_colwise\).*set new_draft=random"):
        check_copied(module)


def test_a_process_that_is_left_alone_does_not_blame_the_model():
    with pytest.raises(TrainingError, match="another process of the run failed"), others_may_fail():
        raise RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    with pytest.raises(RuntimeError, match="shapes"), others_may_fail():
        raise RuntimeError("shapes differ")


def test_processes_of_srun_are_refused_before_they_look_for_each_other(root, monkeypatch):
    for name, value in (("SLURM_STEP_ID", "1"), ("SLURM_JOB_NAME", "x"), ("SLURM_STEP_NUM_TASKS", "2")):
        monkeypatch.setenv(name, value)
    cfg = settings(root, "refused")
    cfg.device.tensor_parallel, cfg.device.devices, cfg.fit.ema = True, 2, None
    with pytest.raises(TrainingError, match="run `torchrun"):
        run_task("", cfg)


def test_processes_that_nobody_asked_for_are_refused(root, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match=r"2 processes were started for device\.devices x device\.num_nodes = 1"):
        run_task("", settings(root, "refused"))
