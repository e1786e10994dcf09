"""Drafters without a model on outputs that repeat, and on the held-out prompts: acceptance, tokens per call, and speed.

    python experiments/suffix/prompts.py results/suffix/edits.jsonl
    python experiments/suffix/study.py --data results/suffix/edits.jsonl

All methods decode the same prompts greedily in turns, after a warm-up, in this process; every row is compared with the
target's own `generate`. Writes suffix.md. Speed is in tokens per second of processor time, which other jobs on the
machine disturb less than the clock on the wall.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from specdec.bench.own import Workloads, measure, warm_up
from specdec.bench.plan import BenchCell
from specdec.bench.suite import Method, Study, Suite
from specdec.core.tables import markdown, text_table

FOLDER = Path(__file__).parent
SHARED = ["scheduler=continuous", "alignment=inplace", "draft_length=fixed", "gamma=8"]
METHODS = {
    "none": ["drafter=none"],
    "prompt_lookup": ["drafter=prompt_lookup"],
    "trigram": ["drafter=trigram"],
    "suffix": ["drafter=suffix"],
    "suffix, 16 nodes": ["drafter=suffix", "drafter.nodes=16"],
    "recycling": ["drafter=recycling"],
    "recycling, 16 nodes": ["drafter=recycling", "drafter.nodes=16"],
}
NUM_PROMPTS = 40


def measured(data: str, batch: int, given: argparse.Namespace, loads: Workloads) -> list[list[str]]:
    """The table's lines of one data set and batch size."""
    study = Study(
        title="suffix",
        pairs=["tiny"],
        methods=list(METHODS),
        batches=[batch],
        max_new_tokens=given.max_new_tokens,
        min_prompts=NUM_PROMPTS,
        prompts_per_row=1,
        data=data,
    )
    records: dict[str, list[dict[str, Any]]] = {name: [] for name in METHODS}
    for repeat in range(given.repeats):
        for name, overrides in METHODS.items():
            method = Method(overrides=[*SHARED, *overrides])
            work = loads.of(BenchCell("suffix", "tiny", None, batch, name), study, method.overrides)
            if repeat == 0:
                warm_up(work, method)
            started = time.process_time()
            figures = measure(work, bound=False)
            records[name].append({**figures, "cpu_s": time.process_time() - started})
    return [line(data, batch, name, records[name], records["none"]) for name in METHODS]


def line(data: str, batch: int, name: str, found: list[dict[str, Any]], plain: list[dict[str, Any]]) -> list[str]:
    """One method: counts of its first run, which the others repeat, and medians of its times."""
    counts = found[0]
    calls, drafted = counts["num_row_rounds"], counts["num_drafted"]
    speeds = [record["num_output_tokens"] / record["cpu_s"] for record in found]
    ratios = [speed * other["cpu_s"] / other["num_output_tokens"] for speed, other in zip(speeds, plain, strict=True)]
    return [
        "edits" if data != "heldout" else data,
        str(batch),
        name,
        f"{counts['num_accepted'] / drafted:.2f}" if drafted else "",
        f"{counts['num_output_tokens'] / calls:.2f}",
        f"{1000 * statistics.median(record['draft_s'] / record['num_verify_calls'] for record in found):.2f}",
        f"{statistics.median(speeds):.0f}",
        f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]",
        f"{counts['num_exact']}/{counts['num_prompts']}",
    ]


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the file of prompts.py")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--out", type=Path, default=FOLDER / "suffix.md")
    given = parser.parse_args()
    suite = Suite(cache="results/suffix", data="heldout", threads=1)
    lines: list[list[str]] = []
    for data in (given.data, "heldout"):
        loads = Workloads(suite, ["pair=tiny"])
        for batch in map(int, given.batches.split(",")):
            lines += measured(data, batch, given, loads)
            heads = [
                "data",
                "batch",
                "drafter",
                "accept",
                "tokens/call",
                "draft ms/round",
                "tokens/cpu-s",
                "vs none",
                "exact",
            ]
            table = markdown(text_table(heads, lines))
            given.out.write_text(
                f"Pair tiny, gamma 8, {given.max_new_tokens} new tokens, {given.repeats} turns.\n\n{table}"
            )
            print(table, flush=True)


if __name__ == "__main__":
    main()
