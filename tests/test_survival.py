"""What is finished stays finished: kills, full disks, memory that runs out, and two processes on one point."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import last_document

from specdec.alignment.inplace import InplaceAlignment
from specdec.cli.exit import errors_in_one_line
from specdec.core.files import LineFile, read_lines
from specdec.core.lock import locked
from specdec.registry import register
from specdec.run import point
from specdec.run.distributed import Ranks

ROOT = Path(__file__).parent.parent
SMALL = [
    *("pair=synthetic", "pair.hidden_size=64", "pair.num_layers=3", "pair.synthetic.residual_scale=0.3"),
    *("data.num_prompts=6", "data.max_input_tokens=40", "data.overlong=truncate", "max_new_tokens=12"),
    *("batch=2", "baseline=false", "scheduler=static", "alignment=inplace"),
]
COUNTS = ("num_prompts", "num_output_tokens", "num_drafted", "num_accepted", "num_row_rounds", "accepted_histogram")


@register("alignment", "hungry")
class HungryAlignment(InplaceAlignment):
    """Asks for a petabyte as soon as three rows run together, and gets the allocator's own error."""

    def forward(self, rows, *args, **kwargs):
        if len(rows) > 2:
            torch.empty(1 << 50, dtype=torch.uint8)
        return super().forward(rows, *args, **kwargs)


def summary_of(out: str) -> dict:
    return last_document(out)


def samples_of(folder: Path) -> dict[int, dict]:
    return {sample["index"]: sample for sample in read_lines(folder / "samples.jsonl")}


def outputs(samples: dict[int, dict]) -> dict[int, tuple]:
    return {i: (s["output_ids"], s["text"], s["accepted_lengths"], s["explanation"]) for i, s in samples.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, pytest.param(4, marks=pytest.mark.nightly)])
def test_killed_processes_lose_nothing_and_double_nothing(tmp_path, kills):
    script = [sys.executable, "scripts/fault_injection.py", "--kills", str(kills), "--folder", str(tmp_path)]
    result = subprocess.run(script, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    findings = json.loads(result.stdout.strip().splitlines()[-1])
    assert findings["kills"] >= kills
    assert findings["samples_checked"] >= 3 * kills
    assert (findings["lost"], findings["doubled"], findings["problems"]) == (0, 0, 0)


def test_a_rerun_goes_on_inside_the_point(run):
    code, out, _ = run(*SMALL)
    assert code == 0
    whole = summary_of(out)
    folder = Path(whole["path"])
    undisturbed = samples_of(folder)
    lines = (folder / "samples.jsonl").read_text().splitlines(keepends=True)
    (folder / "summary.json").unlink()
    (folder / "samples.jsonl").write_text("".join(lines[:3]) + lines[3][:40])
    code, out, _ = run(*SMALL)
    assert code == 0
    assert "3 of 6 prompts are finished" in out
    resumed, after = summary_of(out), samples_of(folder)
    assert [after[i] for i in range(3)] == [undisturbed[i] for i in range(3)], "kept as they were, times included"
    assert outputs(after) == outputs(undisturbed)
    assert {key: resumed[key] for key in COUNTS} == {key: whole[key] for key in COUNTS}
    assert (whole["num_attempts"], whole["num_discarded_tokens"]) == (1, 0)
    redone = sum(len(undisturbed[i]["output_ids"]) for i in range(3, 6))
    assert (resumed["num_attempts"], resumed["num_discarded_tokens"]) == (2, redone)
    assert resumed["num_exact"] == 6
    rounds = list(read_lines(folder / "rounds.jsonl"))
    assert resumed["wall_s"] == pytest.approx(
        sum(value for line in rounds for key, value in line.items() if key.endswith("_s"))
    )
    assert "skipped" in run(*SMALL)[1]


@pytest.mark.slow
def test_samples_of_other_inputs_are_not_gone_on_with(run):
    code, out, _ = run(*SMALL)
    folder = Path(summary_of(out)["path"])
    (folder / "summary.json").unlink()
    attempts = folder / "attempts.jsonl"
    attempts.write_text(attempts.read_text().replace('"prompts": "', '"prompts": "other'))
    code, out, _ = run(*SMALL)
    assert code == 0
    assert "earlier samples are dropped, because these have changed: prompts" in out
    assert summary_of(out)["num_attempts"] == 1


@pytest.mark.slow
def test_explanations_are_made_in_a_later_process(run, monkeypatch, tmp_path):
    """The logits that decided a divergence outlive the process that computed them."""
    wrong = [*SMALL, "alignment=bsp", "allow_incorrect=true", "batch=4"]
    _, out, _ = run(*wrong, results=tmp_path / "undisturbed")
    undisturbed = samples_of(Path(summary_of(out)["path"]))
    assert any(sample["explanation"] for sample in undisturbed.values())

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(point, "classify_divergences", interrupt)
        code, _, err = run(*wrong)
    assert code == 130
    assert err.strip() == "specdec: interrupted; what is finished is kept, run the same command again to resume"
    code, out, _ = run(*wrong)
    assert code == 0
    summary = summary_of(out)
    assert summary["num_attempts"] == 1, "nothing had to be decoded again"
    assert outputs(samples_of(Path(summary["path"]))) == outputs(undisturbed)
    assert not (Path(summary["path"]) / "divergences").exists()


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_loses_nothing(run):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        code, _, err = run(*SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 1
    assert len(err.strip().splitlines()) == 1, err
    assert "free space and run the same command again" in err
    code, out, _ = run(*SMALL)
    assert code == 0
    assert summary_of(out)["num_exact"] == 6


def test_a_full_disk_in_the_middle_of_a_line(tmp_path):
    path, record = tmp_path / "samples.jsonl", {"index": 0, "text": "x" * 600}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with LineFile(path) as lines:
            lines.write(record)
            with pytest.raises(OSError, match="File too large"):
                lines.write({**record, "index": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.stat().st_size == 1000, "a part of the line is there"
    with LineFile(path) as lines:
        lines.write({**record, "index": 2})
    assert [line["index"] for line in read_lines(path)] == [0, 2]


def test_out_of_memory_is_one_line_that_names_the_setting(run):
    code, _, err = run(*SMALL, "alignment=hungry", "batch=4")
    assert code == 1
    assert len(err.strip().splitlines()) == 1, err
    assert "out of memory: set a smaller batch" in err
    assert "runner.on_out_of_memory=shrink" in err


@pytest.mark.slow
def test_out_of_memory_may_halve_the_batch_and_says_so(run):
    shrink = "runner.on_out_of_memory=shrink"
    code, out, _ = run(*SMALL, "alignment=hungry", "batch=4", shrink)
    assert code == 0
    assert "out of memory: resumed with batch=2" in out
    summary = summary_of(out)
    assert (summary["batch"], summary["smallest_batch"], summary["num_exact"]) == (4, 2, 6)
    assert summary["status"] == "done"


@pytest.mark.slow
def test_a_point_that_runs_elsewhere_is_waited_for(run, tmp_path, monkeypatch):
    code, out, _ = run(*SMALL, results=tmp_path / "elsewhere")
    finished = Path(summary_of(out)["path"])
    entered, waits = threading.Event(), threading.Event()
    say = Ranks.say
    monkeypatch.setattr(Ranks, "say", lambda ranks, text: (say(ranks, text), waits.set()))

    def other_process():
        with locked(tmp_path / "results", finished.name):
            entered.set()
            assert waits.wait(60)
            shutil.copytree(finished, tmp_path / "results" / finished.name)

    other = threading.Thread(target=other_process)
    other.start()
    entered.wait()
    code, out, _ = run(*SMALL)
    other.join()
    assert code == 0
    assert "another process computes" in out
    assert "waiting for its result" in out
    assert summary_of(out)["skipped"]


@pytest.mark.slow
def test_a_point_that_runs_elsewhere_may_be_left_for_later(run, tmp_path):
    arguments = [*SMALL, "batch=2,3", "runner.on_locked=skip", "-m"]
    code, out, _ = run(*arguments)
    first = Path(last_document(out)["points"][0]["path"])
    shutil.rmtree(first)
    with locked(tmp_path / "results", first.name):
        code, out, err = run(*arguments)
    points = last_document(out)["points"]
    assert [done["status"] for done in points] == ["running elsewhere", "done"]
    assert code == 1
    assert "1 points run elsewhere: run the same command again" in err
    assert run(*arguments)[0] == 0


@pytest.mark.slow
def test_a_failed_point_leaves_its_error_and_what_it_finished(run, monkeypatch):
    def fail(*_):
        raise ValueError("the first line\nand a second")

    with monkeypatch.context() as patch:
        patch.setattr(point, "classify_divergences", fail)
        code, _, err = run(*SMALL)
    assert code == 1
    assert "ValueError: the first line (set SPECDEC_TRACEBACK=1" in err
    code, out, _ = run(*SMALL, "progress=false")
    assert code == 0
    assert "6 of 6 prompts are finished" in out
    assert not (Path(summary_of(out)["path"]) / "failure.json").exists()


def swallow_a_termination() -> None:
    with errors_in_one_line():
        with suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        raise ValueError("half a config")


def test_a_termination_that_a_library_swallows_still_ends_the_run_as_one(capsys):
    with pytest.raises(SystemExit) as end:
        swallow_a_termination()
    assert end.value.code == 128 + signal.SIGTERM
    assert "terminated; what is finished is kept" in capsys.readouterr().err
