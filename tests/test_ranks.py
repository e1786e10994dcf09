"""Several processes: how prompts are shared out, who speaks, and the same outputs as on one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cases import short_only
from conftest import last_document
from hydra import compose, initialize_config_module
from hypothesis import given
from hypothesis import strategies as st

from specdec.config.processes import is_main_process, world_size
from specdec.config.resolve import resolve
from specdec.core.files import read_lines
from specdec.core.prompts import Prompt
from specdec.errors import ConfigError
from specdec.run.distributed import Ranks, shares

ROOT = Path(__file__).parent.parent
SIX = [
    *("data.num_prompts=6", "max_new_tokens=8", "batch=2", "scheduler=static", "alignment=inplace"),
    *("runner.accelerator=cpu", "runner.threads=1"),
]


def composed(*overrides):
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        return resolve(compose(config_name="config", overrides=list(overrides)))


@given(st.lists(st.integers(1, 500), max_size=40), st.integers(1, 6))
def test_every_prompt_has_one_rank_and_the_load_is_even(lengths, num_shares):
    prompts = [Prompt(index, index, "", [0] * length) for index, length in enumerate(lengths)]
    parts = shares(prompts, num_shares, max_new_tokens=16)
    assert sorted(prompt.index for part in parts for prompt in part) == list(range(len(prompts)))
    assert all([p.index for p in part] == sorted(p.index for p in part) for part in parts)
    loads = [sum(len(prompt.ids) + 16 for prompt in part) for part in parts]
    assert max(loads) - min(loads) <= max(lengths, default=0) + 16, "no rank could be relieved by giving a prompt away"


def test_tensor_parallel_ranks_all_have_all_prompts_and_one_writes():
    prompts = [Prompt(index, index, "", [0]) for index in range(5)]
    ranks = [Ranks(rank, 2, tensor_parallel=True) for rank in range(2)]
    assert [r.share(prompts, 8) for r in ranks] == [prompts, prompts]
    assert [r.writes for r in ranks] == [True, False]
    assert [Ranks(rank, 2).writes for rank in range(2)] == [True, True]


@pytest.mark.parametrize(
    ("environ", "size", "main"),
    [
        ({}, 1, True),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "RANK": "0"}, 4, True),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "RANK": "3"}, 4, False),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, 2, False),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, 1, True),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_NAME": "interactive"}, 1, True),
    ],
)
def test_who_started_this_process(environ, size, main):
    assert (world_size(environ), is_main_process(environ)) == (size, main)


@pytest.mark.parametrize(
    ("overrides", "message"),
    short_only(
        [
            (["runner.devices=0"], "runner.devices=0: give a number above 0"),
            (["runner.devices=null"], "runner.devices=None: give a number above 0"),
            (["runner.devices=many"], "runner.devices=many: give a number"),
            (["runner.devices=[0,1]", "runner.accelerator=cpu"], "only GPUs can be listed"),
            (["runner.strategy=fsdp"], "unknown runner.strategy 'fsdp'"),
            (["runner.num_nodes=2"], "runner.num_nodes=2: start it with torchrun or srun"),
            (["runner.tensor_parallel=true"], "set runner.devices=2 or more"),
            (["runner.tensor_parallel=true", "runner.devices=2", "weights=random"], "only checkpoints can be split"),
            (["runner.prefill_chunk=-1"], "runner.prefill_chunk=-1: it must be at least 1"),
            (["runner.prefill_chunk=0"], "null for no chunks"),
            (["runner.tensor_parallel=true", "runner.devices=2", "arrivals=poisson"], "arrivals depend on time"),
            (["runner.on_locked=maybe"], "unknown runner.on_locked 'maybe'"),
        ],
        ["runner.devices=0"],
        ["runner.devices=null"],
        ["runner.on_locked=maybe"],
    ),
)
def test_what_the_runner_group_cannot_mean(overrides, message):
    with pytest.raises(ConfigError) as refused:
        composed(*overrides)
    assert message in str(refused.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # by pytest, not by a run
@pytest.mark.parametrize(
    ("strategy", "baseline"), [("ddp_fork", False), pytest.param("ddp", True, marks=pytest.mark.nightly)]
)
def test_two_processes_give_the_same_outputs_as_one(run, monkeypatch, strategy, baseline):
    monkeypatch.chdir(ROOT)
    code, out, err = run(*SIX, f"runner.strategy={strategy}", "runner.devices=1,2", f"baseline={baseline}", "-m")
    assert code == 0, err
    alone, together = last_document(out)["points"]
    texts = []
    for summary in (alone, together):
        samples = list(read_lines(Path(summary["path"]) / "samples.jsonl"))
        assert [sample["index"] for sample in samples] == list(range(6)), "in prompt order"
        texts.append(json.dumps([(sample["output_ids"], sample["text"]) for sample in samples]).encode())
    assert texts[0] == texts[1], "byte for byte"
    assert together["num_exact"] == alone["num_exact"] == 6
    assert [part["num_prompts"] for part in together["ranks"]] == [3, 3]
    assert sum(part["num_output_tokens"] for part in together["ranks"]) == together["num_output_tokens"]
    assert max(part["wall_s"] for part in together["ranks"]) == pytest.approx(together["wall_s"])
    rounds = list(read_lines(Path(together["path"]) / "rounds.jsonl"))
    assert {line["rank"] for line in rounds} == {0, 1}
    assert len(rounds) == together["num_verify_calls"]
    assert not list(Path(together["path"]).glob("*.rank*"))
    if baseline:
        assert together["baseline"] != alone["baseline"], "compared with plain decoding on as many processes"


def written(folder: Path) -> int:
    """Bytes of all rounds so far: a running process adds to them many times a second."""
    return sum(path.stat().st_size for path in folder.glob("*/rounds*.jsonl"))


@pytest.mark.nightly
def test_a_killed_run_takes_its_processes_with_it_and_is_gone_on_with(tmp_path):
    several = [*SIX, "runner.devices=2", "baseline=false", "reference=false", "max_new_tokens=160", "drafter=none"]
    command = [sys.executable, "run.py", f"results_dir={tmp_path}", *several]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + 240
    while time.monotonic() < until and not any(path.stat().st_size for path in tmp_path.glob("*/samples*.jsonl")):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1)
    size = written(tmp_path)
    time.sleep(2)
    assert written(tmp_path) == size, "nobody goes on writing"
    kept = {sample["index"]: sample for path in tmp_path.glob("*/samples*.jsonl") for sample in read_lines(path)}
    assert 0 < len(kept) < 6
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    summary = last_document(result.stdout)
    samples = {sample["index"]: sample for sample in read_lines(Path(summary["path"]) / "samples.jsonl")}
    assert samples.keys() == set(range(6))
    assert all(samples[index] == sample for index, sample in kept.items())
    assert summary["num_attempts"] == 2
