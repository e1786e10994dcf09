"""The target split over two processes by transformers' own plan, under torchrun: the tokens of one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from specdec.core.files import read_lines
from specdec.errors import PairError
from specdec.models.tensor_parallel import split_arguments
from tests.conftest import perturbed, small_llama

ROOT = Path(__file__).parent.parent


def save_pair(folder: Path) -> list[str]:
    """A random Llama with four attention heads over two key-value heads, and a draft that agrees some of the time."""
    target = small_llama(0, torch.float64, layers=2, vocab_size=2048, max_position_embeddings=512)
    target.save_pretrained(folder / "target")
    perturbed(target, 0.02).save_pretrained(folder / "draft")
    names = [f"pair.{role}={folder}/{role}" for role in ("target", "draft")]
    return [*names, "pair.tokenizer=asset:tiny/tokenizer", "stop_tokens=[]"]


def decode(command: list[str], results: Path, *overrides: str) -> tuple[dict, list[dict]]:
    arguments = [*overrides, f"results_dir={results}", "runner.accelerator=cpu", "runner.dtype=float64"]
    result = subprocess.run([*command, "run.py", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    document = json.loads(next(line for line in result.stdout.splitlines() if line.startswith("{")))
    path = Path(document["path"])
    return json.loads((path / "summary.json").read_text()), list(read_lines(path / "samples.jsonl"))


@pytest.mark.nightly
def test_two_processes_share_the_target_and_give_the_tokens_of_one(tmp_path):
    pytest.importorskip("accelerate", reason="transformers places the parts of a model through accelerate")
    small = [*save_pair(tmp_path), "data.num_prompts=4", "data.max_input_tokens=30", "data.overlong=truncate"]
    small += ["max_new_tokens=12", "batch=3", "scheduler=exspec", "alignment=inplace"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    split, samples = decode(torchrun, tmp_path / "results", *small, "runner.devices=2", "runner.tensor_parallel=true")
    alone, expected = decode([sys.executable], tmp_path / "results", *small)
    assert split["hash"] != alone["hash"]
    assert split["reference"] != alone["reference"], "a reference of its own, with the same split"
    assert [s["output_ids"] for s in samples] == [s["output_ids"] for s in expected]
    assert [s["accepted_lengths"] for s in samples] == [s["accepted_lengths"] for s in expected]
    assert 0 < split["acceptance_rate"] < 1
    assert split["num_exact"] == alone["num_exact"] == 4
    assert split["speedup_vs_ar"] > 0, "the baseline looks at no clock either"
    assert len(split["ranks"]) == 1, "one share of the prompts, and one process that writes"
    copied = ["drafter=eagle", "drafter.untrained=true"]  # a layer that begins as the target's last one, whole
    _, samples = decode(
        torchrun, tmp_path / "results", *small, *copied, "runner.devices=2", "runner.tensor_parallel=true"
    )
    assert [s["output_ids"] for s in samples] == [s["output_ids"] for s in expected]
    _, alone = decode([sys.executable], tmp_path / "results", *small, *copied)
    assert [s["accepted_lengths"] for s in samples] == [s["accepted_lengths"] for s in alone]


def test_heads_that_cannot_be_shared_are_refused():
    pytest.importorskip("accelerate", reason="transformers places the parts of a model through accelerate")
    config = LlamaConfig(num_attention_heads=4, num_key_value_heads=2)
    with pytest.raises(PairError, match="4 attention and 2 key-value heads, which 4 processes cannot share"):
        split_arguments("target", "some/model", config, 4)
    assert split_arguments("target", "some/model", config, 1) == {}
