"""The command line: Hydra composes, this module turns every failure into one line and prints the tables.

Nothing here imports torch; the job does, once its config is known to be right.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.cli_errors import explain
from specdec.registry import load_entry_points
from specdec.results import append_line, read_lines

QUICKSTART = "experiment=quickstart"
POINTS = "points.jsonl"
_sweep_dirs: list[Path] = []  # state of one call of main()
_outcomes: list[dict[str, Any]] = []
_errors: list[Exception] = []  # of a single run: raised again outside Hydra, which would print lines of its own


class SweepCallback(Callback):
    """Tells this process where the jobs of its sweep, wherever they run, leave their outcomes."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called once, before the first job."""
        _sweep_dirs.append(Path(config.hydra.sweep.dir))


def main() -> None:
    """Entry point of ``run.py`` and of the ``specdec`` command."""
    load_entry_points()
    for state in (_sweep_dirs, _outcomes, _errors):
        state.clear()
    if len(sys.argv) == 1:
        sys.argv.append(QUICKSTART)
    if {"--help", "-h"} & set(sys.argv[1:]):
        _help()
        return
    # Hydra prints long chains of causes and exits by itself; with this set, it lets us have the exception.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    run = hydra.main(version_base="1.3", config_path="pkg://specdec.conf", config_name="config")(_job)
    try:
        run()
        for error in _errors:
            raise error
    except KeyboardInterrupt:
        _fail("interrupted; finished points are kept, run the same command again to go on", 130)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if os.environ.get("SPECDEC_TRACEBACK"):
            raise
        _fail(explain(error), 1)
    for folder in _sweep_dirs:
        _outcomes.extend(sorted(read_lines(folder / POINTS), key=lambda outcome: int(outcome["job"])))
    if _outcomes:
        _report()


def _help() -> None:
    from specdec.cli_help import print_help

    try:
        print_help([argument for argument in sys.argv[1:] if not argument.startswith("-")])
    except Exception as error:
        _fail(explain(error), 1)


def _job(cfg: DictConfig) -> None:
    """One point. In a sweep a point that fails is recorded and the sweep goes on."""
    from specdec.runner import failed_point, run_point

    context = HydraConfig.get()
    overrides = list(context.overrides.task)
    if context.mode != RunMode.MULTIRUN:
        try:
            _outcomes.append({**run_point(cfg, overrides), "strict": bool(cfg.strict)})
        except Exception as error:
            _errors.append(error)
        return
    given = [argument.lower() for argument in sys.argv]
    varying = [override for override in overrides if override.lower() not in given]
    print(f"[{context.job.num + 1}] {' '.join(varying)}", flush=True)
    try:
        outcome = {**run_point(cfg, overrides), "strict": bool(cfg.strict)}
    except Exception as error:
        message = explain(error)
        print(f"specdec: this point failed: {message}", file=sys.stderr, flush=True)
        outcome = failed_point(cfg, overrides, message)
    append_line(Path(context.sweep.dir) / POINTS, {**outcome, "job": context.job.num})


def _report() -> None:
    """Table of all points, then one JSON document as the last line of stdout."""
    from specdec.table import print_table

    print_table(_outcomes)
    document = {"points": _outcomes} if _sweep_dirs else _outcomes[0]
    print(json.dumps(document, allow_nan=False), flush=True)
    failures = [outcome["num_failures"] for outcome in _outcomes if outcome.get("strict") and outcome["num_failures"]]
    if failures:
        _fail(
            f"strict=true: {sum(failures)} divergences that rounding does not explain; see `explanation` in "
            "samples.jsonl",
            1,
        )
    if any(outcome["status"] != "done" for outcome in _outcomes):
        sys.exit(1)


def _fail(message: str, code: int) -> None:
    print(f"specdec: {message}", file=sys.stderr)
    sys.exit(code)
