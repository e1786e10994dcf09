"""Sweeps whose points run in other processes, through Hydra's launchers: one table, and the same exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import last_document
from hydra import compose, initialize_config_module
from hydra.plugins.launcher import Launcher
from hydra.utils import get_class

import specdec.config  # noqa: F401  (declares the config groups)

ROOT = Path(__file__).parent.parent
SWEEP = [
    *("pair=synthetic", "pair.hidden_size=64", "pair.num_layers=3", "data.num_prompts=3", "data.overlong=truncate"),
    *("data.max_input_tokens=30", "scheduler=static", "alignment=inplace", "baseline=false", "runner.threads=1"),
]


def sweep(results: Path, *overrides: str) -> tuple[int, list[dict], str]:
    command = [sys.executable, "run.py", *SWEEP, *overrides, f"results_dir={results}", "-m"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return result.returncode, last_document(result.stdout)["points"], result.stdout


LAUNCHERS = {
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", ["hydra.launcher.timeout_min=10"]),
    "submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", ["hydra.launcher.timeout_min=10"]),
    "joblib": ("hydra_plugins.hydra_joblib_launcher", ["hydra.launcher.n_jobs=1"]),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_can_be_chosen_for_a_sweep(launcher):
    package, settings = LAUNCHERS[launcher]
    pytest.importorskip(package, reason=f"hydra/launcher={launcher} is not installed")
    words = [f"hydra/launcher={launcher}", *settings, *SWEEP]
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        cfg = compose(config_name="config", overrides=words, return_hydra_config=True)
    assert issubclass(get_class(cfg.hydra.launcher._target_), Launcher)


def test_the_file_for_skypilot_gives_every_machine_its_part(tmp_path):
    """Its shell lines, with `echo` in the place of Python."""
    text = (ROOT / "docs" / "launchers.md").read_text()
    task = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    assert set(task) == {"num_nodes", "resources", "workdir", "file_mounts", "setup", "run"}
    (tmp_path / "results").mkdir()
    script = task["run"].replace(".venv/bin/python", "echo").replace(" /results/", f" {tmp_path}/bucket-")
    parts = []
    for rank in range(task["num_nodes"]):
        environment = {"SKYPILOT_NODE_RANK": str(rank), "PATH": os.environ["PATH"]}
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / f"bucket-{rank}").is_dir()
        parts.append(next(word for word in done.stdout.split() if word.startswith("batch=")))
    assert parts == ["batch=1,2,4", "batch=8,16"]


@pytest.mark.nightly
@pytest.mark.parametrize("launcher", ["joblib", pytest.param("submitit_local", marks=pytest.mark.nightly)])
def test_points_in_other_processes_come_back_into_one_table(tmp_path, launcher):
    """The second point fails: it is recorded, the sweep goes on, and the exit code says so."""
    package, settings = LAUNCHERS[launcher]
    pytest.importorskip(
        package, reason=f"hydra/launcher={launcher} is not installed (pip install 'specdec[launchers]')"
    )
    code, points, out = sweep(tmp_path, f"hydra/launcher={launcher}", *settings, "max_new_tokens=4,100000")
    assert code == 1
    assert [point["status"] for point in points] == ["done", "failed"]
    assert points[0]["num_exact"] == 3
    assert "max_new_tokens=100000 leaves no room" in points[1]["error"]
    assert "3/3" in out
