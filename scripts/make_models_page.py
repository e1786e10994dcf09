"""Write docs/models.md: every causal architecture of the installed `transformers`, decoded by every strategy.

    python scripts/make_models_page.py                       # all of them; exit code 1 if a row is wrong
    python scripts/make_models_page.py --only llama,falcon   # these, and print only

Each architecture is a small random model with windows, chunks and scales that begin within its fifty tokens. Ragged
rows, decoded with a draft that agrees some of the time, are compared with the unmodified model's own `generate` on each
row alone. Each runs in a process of its own with a time limit.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import multiprocessing
import os
import sys
import time
import warnings
from collections import Counter
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import model_check
import torch
import transformers
from model_check import BATCH, EXACT, GAMMA, REFUSED, STRATEGIES, TRACEBACK, UNBUILT, WRONG, Result
from model_reference import LENGTHS, NEW
from model_zoo import Entry, entries

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
LIMIT_S = 300.0
EXPLANATION = f"""\
Each row is a small random model in float32: few layers of every kind that its config knows, windows, chunks, scales
and original lengths are short enough to matter. {len(LENGTHS)} prompts of {min(LENGTHS)} to {max(LENGTHS)} tokens are
continued by {NEW} tokens, {BATCH} rows at a time, with a draft (the same model, its weights perturbed) that proposes
{GAMMA} tokens a round.

- *exact*: every row got the tokens of the unmodified model's own `generate` on that row alone.
- *refused*: specdec said no before it decoded, with the reason.
- *exact* under `inplace` alone: models with [recurrent states](recurrent_states.md), which the other strategies refuse.
- *not built*: `transformers` itself could not build the model here, or not generate with it.
- *what bites*: settings that change the outputs of the same weights when they are lifted; ignoring them would show.

A random model shows that positions, masks and caches are right. It says nothing of a checkpoint's quality or speed.
"""
IN_PLACE = "exact under inplace alone"
ORDER = (TRACEBACK, WRONG, UNBUILT, REFUSED, IN_PLACE, EXACT)
FORK = multiprocessing.get_context("fork")


def run_all(chosen: list[Entry], jobs: int, limit_s: float) -> list[Result]:
    """Each entry in a forked process: one that hangs or dies costs its own row only."""
    model_check.check(Entry("llama"))  # what every model imports is then imported once, before the forks
    waiting, running, results = list(reversed(chosen)), {}, {}
    while waiting or running:
        while waiting and len(running) < jobs:
            entry = waiting.pop()
            ours, theirs = FORK.Pipe(duplex=False)
            process = FORK.Process(target=_child, args=(entry, theirs))
            process.start()
            theirs.close()
            running[ours] = (entry, process, time.monotonic())
        ready = wait(list(running), timeout=1.0)
        for pipe, (entry, process, started) in list(running.items()):
            seconds = time.monotonic() - started
            if pipe not in ready and seconds < limit_s:
                continue
            result = _received(pipe, entry, seconds, limit_s) if pipe in ready else _late(entry, limit_s)
            process.kill()
            process.join()
            del running[pipe]
            result.seconds = seconds
            results[entry] = result
            print(f"[{len(results)}/{len(chosen)}] {_line(result)}", flush=True)
    return [results[entry] for entry in chosen]


def _child(entry: Entry, pipe: Connection) -> None:
    _quiet()
    with contextlib.redirect_stdout(io.StringIO()):  # some models print
        result = model_check.check(entry)
    pipe.send(result.as_dict())
    pipe.close()


def _quiet() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def _received(pipe: Any, entry: Entry, seconds: float, limit_s: float) -> Result:
    try:
        return Result(**pipe.recv())
    except EOFError:
        return Result(entry.name, outcomes=dict.fromkeys(STRATEGIES, TRACEBACK), remarks={"the process died": []})


def _late(entry: Entry, limit_s: float) -> Result:
    return Result(
        entry.name, outcomes=dict.fromkeys(STRATEGIES, TRACEBACK), remarks={f"no result after {limit_s:.0f} s": []}
    )


def verdict(result: Result) -> str:
    """The worst of its strategies; where all but inplace refuse, that of inplace."""
    others = {outcome for strategy, outcome in result.outcomes.items() if strategy != "inplace"}
    if others == {REFUSED} and result.outcomes["inplace"] == EXACT:
        return IN_PLACE
    return min(result.outcomes.values(), key=ORDER.index)


def _line(result: Result) -> str:
    outcomes = set(result.outcomes.values())
    shown = outcomes.pop() if len(outcomes) == 1 else " ".join(f"{k}={v}" for k, v in result.outcomes.items())
    parts = [f"{result.name}: {shown}", f"{result.seconds:.1f} s", *filter(None, [result.remark])]
    return "; ".join(parts)


def page(results: list[Result]) -> str:
    """docs/models.md."""
    counts = Counter(map(verdict, results))
    summary = ", ".join(f"{counts[word]} {word}" for word in reversed(ORDER) if counts[word])
    lines = [
        "# Models",
        "",
        "Generated by `python scripts/make_models_page.py`; do not edit.",
        "",
        f"transformers {transformers.__version__}, {len(results)} architectures and variants: {summary}.",
        "",
        EXPLANATION,
        f"| architecture | class | what bites | {' | '.join(STRATEGIES)} | remark |",
        "|---|---|---|" + "---|" * len(STRATEGIES) + "---|",
    ]
    for result in results:
        outcomes = " | ".join(result.outcomes[strategy] for strategy in STRATEGIES)
        remark = result.remark.replace("|", r"\|")
        lines.append(f"| {result.name} | {result.class_name} | {', '.join(result.bites)} | {outcomes} | {remark} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Check, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="model types, separated by commas; writes no page")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for one architecture")
    parser.add_argument("--page", type=Path, default=None, help="where the table goes (docs/models.md)")
    parser.add_argument("--json", type=Path, default=None, help="also write all results to this file")
    args = parser.parse_args(arguments)
    only = set(filter(None, args.only.split(",")))
    chosen = [entry for entry in entries() if not only or entry.model_type in only]
    if missing := only - {entry.model_type for entry in chosen}:
        parser.error(f"--only: no such model type: {', '.join(sorted(missing))}")
    _quiet()
    results = run_all(chosen, args.jobs, args.limit)
    if args.json:
        args.json.write_text(json.dumps([result.as_dict() for result in results], indent=1), encoding="utf-8")
    target = args.page or (None if only else PAGE)
    if target:
        target.write_text(page(results), encoding="utf-8")
    counts = Counter(map(verdict, results))
    print(", ".join(f"{counts[word]} {word}" for word in reversed(ORDER) if counts[word]))
    return int(any(result.failed for result in results))


if __name__ == "__main__":
    sys.exit(main())
