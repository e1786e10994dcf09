"""The W&B dashboard, its sweep file, and the extras that they need."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_module

from specdec.config.resolve import resolve
from specdec.config.schema import RunConfig

ROOT = Path(__file__).parent.parent
SMALL = [
    *("pair=synthetic", "pair.hidden_size=64", "pair.num_layers=3", "data.num_prompts=4", "data.max_input_tokens=40"),
    *("data.overlong=truncate", "max_new_tokens=8", "baseline=false", "batch=2"),
]


@pytest.mark.slow
def test_the_wandb_sweep_file_names_settings_that_exist():
    sweep = yaml.safe_load((ROOT / "experiments" / "dashboard" / "sweep.yaml").read_text())
    assert (ROOT / sweep["program"]).is_file()
    assert sweep["method"] in ("grid", "random", "bayes")
    assert "${args_no_hyphens}" in sweep["command"]
    fixed = [part for part in sweep["command"] if "=" in part]
    points = [[f"{key}={part['value']}"] if "value" in part else [f"{key}={v}" for v in part["values"]]
              for key, part in sweep["parameters"].items()]  # fmt: skip
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        for place in range(max(map(len, points))):
            cfg = compose(config_name="config", overrides=fixed + [options[place % len(options)] for options in points])
            assert resolve(cfg).logger.mode == "online"
    assert sweep["metric"]["name"] == "tokens_per_s"


@pytest.mark.slow
def test_the_dashboard_shows_figures_that_runs_have(run, tmp_path):
    code, _, _ = run(*SMALL, results=tmp_path)
    assert code == 0
    (summary,) = [json.loads(path.read_text()) for path in tmp_path.glob("*/summary.json")]
    printed = subprocess.run(
        [sys.executable, "scripts/wandb_dashboard.py", "--dry-run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    view = json.loads(printed.stdout)
    panels = [
        panel for section in view["spec"]["section"]["panelBankConfig"]["sections"] for panel in section["panels"]
    ]
    assert len(panels) > 12
    known = {f"summary:{key}" for key in summary}
    known |= {f"summary:{key}.{part}" for key, value in summary.items() if isinstance(value, dict) for part in value}
    known |= {f"summary:{key}.{p}" for key in ("token_s", "gap_s") for p in ("p50", "p90", "p99")}  # of serving
    known |= {"summary:wait_rounds.max"} | {f"config:{key}.value" for key in RunConfig.__dataclass_fields__}
    for panel in panels:
        config = panel["config"]
        named = [
            config[axis] for axis in ("xAxis", "yAxis") if isinstance(config.get(axis), str) and ":" in config[axis]
        ]
        if panel["viewType"] == "Bar Chart":
            named += [metric.replace("summary_metrics.", "summary:") for metric in config["metrics"]]
        assert not [name for name in named if name not in known], panel


@pytest.mark.slow
def test_the_dashboard_says_what_it_needs(tmp_path):
    for arguments, message in ([], "--entity is missing"), (["--entity", "team"], "no W&B key"):
        failed = subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "wandb_dashboard.py"), *arguments],
            capture_output=True,
            text=True,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")},
        )
        assert failed.returncode == 1
        assert message in failed.stderr
        assert len(failed.stderr.strip().splitlines()) == 1, failed.stderr


def test_extras_are_declared():
    assert importlib.util.find_spec("tensorboard")
    text = (ROOT / "pyproject.toml").read_text()
    assert "\ntensorboard = [" in text
    assert "\ndashboard = [" in text
