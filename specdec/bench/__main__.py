"""The command: choose a suite, pin the cores, measure, write tables and plots. ``--help`` answers without torch."""

from __future__ import annotations

import json
import platform
import sys
import time
from datetime import datetime, timezone
from math import inf
from pathlib import Path
from typing import Any

from specdec.analysis import require
from specdec.bench.machine import pin
from specdec.bench.suite import NO_TIME, Library, Suite, load_suite
from specdec.core.lock import locked
from specdec.errors import ConfigError, SpecdecError

_HELP = """usage: python -m specdec.bench suite=NAME [KEY=VALUE ...]

Measures methods and peers in turns, on pinned cores, each after a warm-up; a rerun measures only what is missing.
Needs: pip install 'specdec[analysis]'.
suite=NAME       quick (default), two_core, ablation, context, gpu; or a YAML file of your own
threads=N        cores that everything is pinned to (default 1)      repeats=N    turns
out=FOLDER       where measurements, tables and plots go             data=FILE    prompts, JSONL in Spec-Bench's schema
minutes=N        begin nothing new after so many (a rerun goes on)
force=true       forget earlier measurements
only=[STUDY]     these studies only        without=[METHOD]  leave methods out
peers=FOLDER     where experiments/speed/peers/install.py made the environments of other engines
Any other setting of the suite can be given too, as in studies.pairs.batches=[1,8]."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if {"--help", "-h"} & set(words):
        print(_HELP)
        return 0
    try:
        suite, library = load_suite(words)
        with locked(str(suite.cache), "bench", on_wait=_refuse):
            return _measure(suite, library, pin(suite.threads))
    except SpecdecError as error:
        print(f"specdec: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("specdec: interrupted; measurements are kept, run the same command to resume", file=sys.stderr)
        return 130


def _refuse() -> bool:
    raise ConfigError("another benchmark is running with this cache; they would slow each other down: wait for it")


def _measure(suite: Suite, library: Library, cores: list[int]) -> int:
    require("matplotlib")  # before hours of measurements; like torch, after the cores are chosen
    import torch

    torch.set_num_threads(suite.threads)
    from specdec.bench.checks import take_checks
    from specdec.bench.run import run
    from specdec.bench.summary import summarize
    from specdec.registry import load_entry_points

    load_entry_points()
    deadline = time.monotonic() + (inf if suite.minutes is None else 60 * suite.minutes)
    checks = take_checks(suite, library, deadline)
    records = run(suite, library, deadline)
    document = {"machine": _machine(cores), "checks": checks, **summarize(suite, library, records)}
    text = write(document, Path(str(suite.out)))
    print(text)
    failed = [cell for cell in document["cells"] if cell["status"] == "failed"]
    inexact = [cell for cell in document["cells"] if cell.get("num_exact", 0) < cell.get("num_prompts", 0)]
    not_passed = [check for check in checks if check["status"] != NO_TIME and not check["passed"]]
    counts = {
        "checks": len(checks),
        "checks_not_passed": len(not_passed),
        "cells": len(document["cells"]),
        "failed": len(failed),
        "inexact": len(inexact),
        "claims": len(document["claims"]),
        "claims_met": sum(claim["verdict"] == "met" for claim in document["claims"]),
        "claims_not_met": sum(claim["verdict"] == "NOT MET" for claim in document["claims"]),
    }
    print(json.dumps({"suite": suite.name, "out": suite.out, **counts}))
    return 1 if failed or not_passed else 0


def write(document: dict[str, Any], out: Path) -> str:
    """Write results.json, tables.md, tables.tex and the plots; returns the Markdown."""
    from specdec.bench.plots import write_plots
    from specdec.bench.tables import to_latex, to_markdown
    from specdec.core.files import write_atomically, write_json

    out.mkdir(parents=True, exist_ok=True)
    text = to_markdown(document)
    if pictures := write_plots(document, out):
        shown = "\n\n".join(f"![{path.stem}]({path.name})" for path in pictures)
        text = f"{text}\n## Plots\n\n{shown}\n"
    write_json(out / "results.json", document)
    write_atomically(out / "tables.md", text)
    write_atomically(out / "tables.tex", to_latex(document))
    return text


def _machine(cores: list[int]) -> dict[str, Any]:
    """Where the figures come from."""
    import torch

    from specdec.run.provenance import git_revision, package_version, processor

    packages = ("specdec", "torch", "transformers")
    return {
        "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_revision": git_revision(),
        "versions": {name: package_version(name) for name in packages},
        "python": platform.python_version(),
        "processor": processor(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU",
        "cores": cores,
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
    }


if __name__ == "__main__":
    sys.exit(main())
