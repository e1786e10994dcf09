"""The command line of runs: Hydra composes the configs, this module prints the tables, and errors in one line.

Nothing here imports torch; the job does, after its config has been checked.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.cli.exit import errors_in_one_line
from specdec.cli.presets import split_presets
from specdec.config.explain import explain
from specdec.config.pair_folder import expand_pair_folder
from specdec.config.processes import is_main_process
from specdec.core.files import append_line, read_lines
from specdec.errors import SpecdecError
from specdec.registry import load_entry_points
from specdec.run.folder import ELSEWHERE, read_summary

QUICKSTART = "experiment=quickstart"
POINTS = "points.jsonl"
Outcome = dict[str, Any]


def main() -> None:
    """Entry point of ``run.py`` and of the ``specdec`` command."""
    load_entry_points()
    if len(sys.argv) == 1:
        sys.argv.append(QUICKSTART)
    sys.argv = [sys.argv[0], *expand_pair_folder(flags_first(sys.argv)[1:])]
    if {"--help", "-h"} & set(sys.argv[1:]):
        _help()
        return
    # Hydra prints long chains of causes and exits by itself; with this set, it raises the exception.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    with _quiet_unless_main(), errors_in_one_line():
        Command().run()


@dataclass(slots=True)
class Command:
    """One call of the command: the folders of its sweeps, and the outcomes of its points."""

    sweep_dirs: list[Path] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)  # one per point, when all has been run
    turns: dict[tuple[int, int], list[Outcome]] = field(default_factory=dict)  # by preset and job
    preset: int = 0  # number of the preset in progress
    error: Exception | None = None  # of a single run: raised again outside Hydra, which would print more lines

    def run(self) -> None:
        """Run all points and print their table, then raise the error that ended the run or left it incomplete."""
        from specdec.cli.turns import merged

        running = _running.set(self)
        try:
            failure = self._run()
        finally:
            _running.reset(running)
        self.outcomes = [merged(list(map(_from_elsewhere, outcomes))) for outcomes in self.turns.values()]
        if self.outcomes:
            self._show()
        if failure is not None:
            raise failure
        self.check()

    def add(self, outcome: Outcome) -> None:
        """Note the outcome of a job of the preset in progress."""
        self.turns.setdefault((self.preset, int(outcome.get("job", 0))), []).append(outcome)

    def _run(self) -> Exception | None:
        from specdec.cli.turns import in_turn, num_turns

        run = hydra.main(version_base="1.3", config_path="pkg://specdec.conf", config_name="config")(_job)
        program, *arguments = sys.argv
        try:
            lines, repeat = split_presets(arguments), num_turns(arguments)
            for turn in range(repeat):
                if repeat > 1:
                    print(f"turn {turn + 1} of {repeat}", flush=True)
                for self.preset, line in enumerate(lines):
                    sys.argv = [program, *in_turn(line, turn)]
                    self._run_line(run)
                if self.error:
                    break
        except Exception as error:
            return error
        finally:
            sys.argv = [program, *arguments]
        return self.error

    def _run_line(self, run: Callable[[], Any]) -> None:
        num_sweeps = len(self.sweep_dirs)
        try:
            run()
        finally:
            for folder in self.sweep_dirs[num_sweeps:]:
                for outcome in sorted(read_lines(folder / POINTS), key=lambda outcome: int(outcome["job"])):
                    self.add(outcome)

    def _show(self) -> None:
        """A table of the points of each preset, then a short JSON document as the last line of stdout."""
        from specdec.cli.document import last_line
        from specdec.cli.table import print_table

        for preset, outcomes in groupby(self.outcomes, key=lambda outcome: outcome.get("preset")):
            print_table(list(outcomes), preset)
        print(last_line(self.outcomes, self.sweep_dirs), flush=True)

    def check(self) -> None:
        """Exit with an error if a point failed, is missing, or does not satisfy ``strict``."""
        failures = [outcome.get("num_failures") or 0 for outcome in self.outcomes if outcome.get("strict")]
        if any(failures):
            raise SpecdecError(
                f"strict=true: {sum(failures)} divergences that rounding does not explain; see `explanation` in "
                "samples.jsonl"
            )
        num_elsewhere = sum(outcome["status"] == ELSEWHERE for outcome in self.outcomes)
        if num_elsewhere:
            raise SpecdecError(f"{num_elsewhere} points run elsewhere: run the same command again to get their results")
        if any(outcome["status"] != "done" for outcome in self.outcomes):
            sys.exit(1)


def _from_elsewhere(outcome: Outcome) -> Outcome:
    """A point that another process was computing may be finished by now."""
    summary = read_summary(Path(outcome["path"])) if outcome["status"] == ELSEWHERE else None
    return {**outcome, **summary} if summary else outcome


_running: ContextVar[Command] = ContextVar("specdec_command")
"""The command in progress, for the jobs and callbacks that Hydra calls in this process."""


class SweepCallback(Callback):
    """Tells the command in which folder the jobs of its sweep, in any process, write their outcomes."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called once, before the first job."""
        _running.get().sweep_dirs.append(Path(config.hydra.sweep.dir))


def flags_first(argv: list[str]) -> list[str]:
    """The same command with ``-m`` in front: argparse would refuse overrides on both sides of it."""
    multirun = [word for word in argv[1:] if word in ("-m", "--multirun")]
    return [argv[0], *multirun[:1], *(word for word in argv[1:] if word not in multirun)]


@contextmanager
def _quiet_unless_main() -> Iterator[None]:
    """Of the processes that torchrun or srun started, only the main one prints."""
    if is_main_process():
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _help() -> None:
    from specdec.cli.help import print_help

    with errors_in_one_line():
        print_help([argument for argument in sys.argv[1:] if not argument.startswith("-")])


def _outcome(cfg: DictConfig, overrides: list[str]) -> Outcome:
    from specdec.run.runner import run_point
    from specdec.run.texts import print_texts

    summary = run_point(cfg, overrides)
    if cfg.show_text and summary["status"] == "done" and is_main_process():
        print_texts(Path(summary["path"]))
    return {**summary, "strict": bool(cfg.strict)}


def _job(cfg: DictConfig) -> None:
    """Run one point. In a sweep, a failed point is recorded and the sweep continues."""
    from specdec.run.runner import failed_point

    context = HydraConfig.get()
    overrides = list(context.overrides.task)
    if context.mode != RunMode.MULTIRUN:
        try:
            _running.get().add(_outcome(cfg, overrides))
        except Exception as error:
            _running.get().error = error
        return
    given = [argument.lower() for argument in sys.argv]
    varying = [override for override in overrides if override.lower() not in given]
    print(f"[{context.job.num + 1}] {' '.join(varying)}", flush=True)
    try:
        outcome = _outcome(cfg, overrides)
    except Exception as error:
        message = explain(error)
        print(f"specdec: this point failed: {message}", file=sys.stderr, flush=True)
        outcome = failed_point(cfg, overrides, message)
    if is_main_process():
        append_line(Path(context.sweep.dir) / POINTS, {**outcome, "job": context.job.num, "preset": cfg.experiment})
