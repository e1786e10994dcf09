"""Sweeps whose points run in other processes, through Hydra's launchers: one table, and the same exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SWEEP = [
    *("pair=synthetic", "pair.hidden_size=64", "pair.num_layers=3", "data.num_prompts=3", "data.overlong=truncate"),
    *("data.max_input_tokens=30", "scheduler=static", "alignment=inplace", "baseline=false", "runner.threads=1"),
]


def sweep(results: Path, *overrides: str) -> tuple[int, list[dict], str]:
    command = [sys.executable, "run.py", *SWEEP, *overrides, f"results_dir={results}", "-m"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return result.returncode, json.loads(result.stdout.strip().splitlines()[-1])["points"], result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "package", "settings"),
    [
        ("submitit_local", "hydra_plugins.hydra_submitit_launcher", ["hydra.launcher.timeout_min=10"]),
        ("joblib", "hydra_plugins.hydra_joblib_launcher", ["hydra.launcher.n_jobs=1"]),
    ],
)
def test_points_in_other_processes_come_back_into_one_table(tmp_path, launcher, package, settings):
    """The second point fails: it is recorded, the sweep goes on, and the exit code says so."""
    pytest.importorskip(
        package, reason=f"hydra/launcher={launcher} is not installed (pip install 'specdec[launchers]')"
    )
    code, points, out = sweep(tmp_path, f"hydra/launcher={launcher}", *settings, "max_new_tokens=4,100000")
    assert code == 1
    assert [point["status"] for point in points] == ["done", "failed"]
    assert points[0]["num_exact"] == 3
    assert "max_new_tokens=100000 leaves no room" in points[1]["error"]
    assert "3/3" in out
