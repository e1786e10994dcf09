"""Kill real processes in the middle of sweeps, run the same command again, and look whether anything was lost.

Usage: python scripts/fault_injection.py [--kills 60] [--seed 0] [--folder DIR]

An undisturbed sweep comes first. Then the same sweep is started again and again in fresh folders, by one process or by
two at once, and ended by SIGKILL, SIGINT or SIGTERM: after a random time, or in the moment in which a file grows. After
each kill, every finished sample must still be there as it was, and none may have been decoded twice; when a sweep gets
through, its samples and counts must equal the undisturbed ones. The last line on stdout is one JSON document; the exit
code is 1 if anything was lost, doubled or different.

Processes are forked from this one, which has imported torch already, so that a start takes no seconds. A forked child
runs the command line like any other process: `specdec.cli.run.main`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

import specdec.run.point  # noqa: F401  (with the line above all that a point needs, imported once for all children)
from specdec.cli import run as cli
from specdec.core.files import read_lines
from specdec.run.folder import read_summary

SWEEP = [
    *("pair=synthetic", "pair.hidden_size=64", "pair.num_layers=3", "pair.synthetic.residual_scale=0.3"),
    *("data.num_prompts=12", "data.max_input_tokens=40", "data.overlong=truncate", "max_new_tokens=24"),
    *("scheduler=plain,eqspec,exspec", "batch=2", "runner.threads=1", "-m"),
]
TIMES = ("ttft_s", "latency_s", "attempt", "rank")  # what an interruption may change in a sample
COUNTS = (
    *("num_prompts", "num_output_tokens", "num_drafted", "num_accepted", "num_row_rounds", "accepted_histogram"),
    *("acceptance_rate", "mean_acceptance_length", "exact_match", "num_divergences", "status"),
)
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)


@dataclass
class Findings:
    """What was done, and what was found."""

    kills: Counter[str] = field(default_factory=Counter)
    sweeps: int = 0
    samples_checked: int = 0  # comparisons of a finished sample with what it was before
    torn_lines: int = 0
    lost: int = 0
    doubled: int = 0
    problems: list[str] = field(default_factory=list)


def start(folder: Path) -> int:
    """Fork a process that runs the sweep; returns its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 70  # if it ends in another way than through main()
    try:
        for stream in (1, 2):
            os.dup2(os.open(f"{folder}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
        sys.argv = ["run.py", f"results_dir={folder}", *SWEEP]
        cli.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except KeyboardInterrupt:
        code = 130
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(child: int) -> int:
    """The exit code of a process, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def finished(folder: Path, findings: Findings) -> dict[tuple[str, int], str]:
    """Every finished sample of a results folder, without its times; also counts those that are there twice."""
    found: dict[tuple[str, int], str] = {}
    for path in folder.glob("*/samples*.jsonl"):
        text = path.read_text()
        findings.torn_lines += bool(text) and not text.endswith("\n")
        for sample in read_lines(path):
            key = (path.parent.name, sample["index"])
            if key in found:
                findings.doubled += 1
                findings.problems.append(f"{key} is there twice")
            found[key] = json.dumps({name: value for name, value in sample.items() if name not in TIMES})
    return found


def compare(before: dict[tuple[str, int], str], after: dict[tuple[str, int], str], findings: Findings) -> None:
    """Whatever was finished must still be there, unchanged."""
    findings.samples_checked += len(before)
    for key, sample in before.items():
        if after.get(key) != sample:
            findings.lost += 1
            findings.problems.append(f"{key} was finished and is {'changed' if key in after else 'gone'}")


def grown(folder: Path) -> int:
    """Bytes of all that a running point appends to."""
    total = 0
    for path in folder.glob("*/*.jsonl"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # renamed in this moment
            continue
    return total


@dataclass(frozen=True)
class Pace:
    """How long the undisturbed sweep took: to its first write, and from there to its end."""

    startup_s: float
    writing_s: float


def until_written(folder: Path, longest_s: float) -> float:
    """Wait until a file grows, but no longer than that; returns seconds."""
    began, size = time.monotonic(), grown(folder)
    while grown(folder) == size and time.monotonic() - began < longest_s:
        time.sleep(0.0005)
    return time.monotonic() - began


def measure(folder: Path) -> Pace:
    """Run the sweep undisturbed.

    Raises:
        SystemExit: it failed.
    """
    began, child = time.monotonic(), start(folder)
    startup_s = until_written(folder, 600)
    if wait(child) != 0:
        raise SystemExit(f"the undisturbed sweep failed, see {folder}.log")
    return Pace(startup_s, time.monotonic() - began - startup_s)


def kill_somewhen(children: list[int], folder: Path, rng: random.Random, pace: Pace, findings: Findings) -> None:
    """End the processes at a random moment: of their start, between writes, or in the moment of one."""
    if rng.random() < 0.15:
        time.sleep(rng.uniform(0, pace.startup_s))
    else:
        until_written(folder, 2 * pace.startup_s)
        time.sleep(rng.uniform(0, 0.4 * pace.writing_s))
        if rng.random() < 0.5:
            until_written(folder, pace.writing_s)
    for child in children:
        number = rng.choice(SIGNALS)
        gone, _ = os.waitpid(child, os.WNOHANG)
        if gone:
            continue
        os.kill(child, number)
        code = wait(child)
        if code == -number or code == 128 + number:
            findings.kills[signal.Signals(number).name] += 1
        elif code != 0:
            findings.problems.append(f"ended by {signal.Signals(number).name} with exit code {code}, see {folder}.log")


def disturbed_sweep(folder: Path, rng: random.Random, pace: Pace, num_kills: int, findings: Findings) -> None:
    """Start and kill a sweep up to ``num_kills`` times, then let it get through."""
    seen: dict[tuple[str, int], str] = {}
    for _ in range(num_kills):
        children = [start(folder) for _ in range(rng.choice((1, 1, 2)))]
        kill_somewhen(children, folder, rng, pace, findings)
        now = finished(folder, findings)
        compare(seen, now, findings)
        seen = now
    codes = [wait(child) for child in [start(folder)]]
    if any(codes):
        findings.problems.append(f"the last run ended with {codes}, see {folder}.log")
    compare(seen, finished(folder, findings), findings)
    findings.sweeps += 1


def figures(folder: Path) -> dict[str, dict[str, Any]]:
    """The counts of every point of a results folder."""
    found = {path.parent.name: read_summary(path.parent) for path in folder.glob("*/summary.json")}
    return {name: {key: summary.get(key) for key in COUNTS} for name, summary in found.items() if summary}


def main() -> int:
    """Run it; returns the exit code."""
    about = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    about.add_argument("--kills", type=int, default=60, help="processes to kill, at least (default: %(default)s)")
    about.add_argument("--seed", type=int, default=0, help="of the moments and the signals")
    about.add_argument("--folder", type=Path, default=None, help="where results go; kept if it is given")
    arguments = about.parse_args()
    root = arguments.folder or Path(tempfile.mkdtemp(prefix="fault_injection_"))
    root.mkdir(parents=True, exist_ok=True)
    rng, findings = random.Random(arguments.seed), Findings()

    undisturbed = root / "undisturbed"
    pace = measure(undisturbed)
    truth, counts = finished(undisturbed, findings), figures(undisturbed)
    while findings.kills.total() < arguments.kills and len(findings.problems) < 20:
        folder = root / f"disturbed{findings.sweeps}"
        disturbed_sweep(folder, rng, pace, min(6, arguments.kills - findings.kills.total()), findings)
        compare(truth, finished(folder, findings), findings)
        if figures(folder) != counts:
            findings.problems.append(f"the counts in {folder} are not those of the undisturbed sweep")
        print(
            f"{findings.kills.total()} kills, {findings.sweeps} sweeps: {len(findings.problems)} problems", flush=True
        )
    for problem in findings.problems:
        print(problem, file=sys.stderr)
    if arguments.folder is None and not findings.problems:
        shutil.rmtree(root)
    document = {
        "kills": findings.kills.total(),
        "by_signal": dict(findings.kills),
        "sweeps": findings.sweeps,
        "points_per_sweep": len(counts),
        "samples_checked": findings.samples_checked,
        "torn_lines": findings.torn_lines,
        "lost": findings.lost,
        "doubled": findings.doubled,
        "problems": len(findings.problems),
    }
    print(json.dumps(document))
    return 1 if findings.problems else 0


if __name__ == "__main__":
    sys.exit(main())
