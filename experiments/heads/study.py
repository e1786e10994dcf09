"""Trained heads against the draft model and plain decoding: what they accept, what drafting costs, how fast they are.

    python experiments/heads/study.py              # trains and measures what is not there yet, writes heads.md
    python experiments/heads/study.py --only train --recipes eagle3,dspark # or measure; a core for each such command
    python experiments/heads/study.py --rehearse   # every line of it at small sizes; the figures mean nothing

A head per recipe and seed, each trained for `--minutes` of the clock on the same outputs.
All methods decode the same prompts greedily in turns, after a warm-up, in this process; every row is compared with the
target's own `generate`. The prompts are cut from held-out files, at other places than those that training measures.
Times are of the processor, from the end of the first round to the end of the last, because other jobs run on the
machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fits import RECIPES, configured, train_head

from specdec.bench.own import Workload, Workloads, warm_up
from specdec.bench.plan import BenchCell
from specdec.bench.suite import Method, Study, Suite
from specdec.config.schema import PairConfig
from specdec.core.clock import Clock
from specdec.core.files import write_json, write_lines
from specdec.core.metrics import calibration_error
from specdec.core.round import Round
from specdec.core.tables import markdown, text_table
from specdec.models.checkpoints import load_tokenizer
from specdec.run.decode import Watch, decode
from specdec.training.corpus import read_corpus
from specdec.training.heldout import make_prompts

FOLDER = Path(__file__).parent
SHARED = ["scheduler=continuous", "alignment=inplace", "draft_length=fixed", "gamma=4"]
EARLY_STOP = ["budget=early_stop", "budget.max_gamma=4"]
SEED = 20  # of the prompts; training has another
PLAIN = "none"


class Counter:
    """Observes rounds: the processor's time from the end of the first to the end of the last, and calibration."""

    def __init__(self) -> None:
        self.moments: list[tuple[float, int]] = []
        self.bins: list[Any] = []

    def __call__(self, outcome: Round, clock: Clock) -> None:
        self.moments.append((time.process_time(), sum(map(len, outcome.emitted))))
        if outcome.calibration:
            self.bins.append(outcome.calibration)

    @property
    def cpu_s(self) -> float:
        """Seconds."""
        return self.moments[-1][0] - self.moments[0][0]

    @property
    def tokens_per_s(self) -> float:
        """Of the processor's time."""
        return sum(count for _, count in self.moments[1:]) / self.cpu_s

    @property
    def calibration_error(self) -> float | None:
        """Of the predicted chances of acceptance; None: nothing is predicted."""
        return calibration_error(np.sum(self.bins, axis=0).tolist()) if self.bins else None


def methods(folders: dict[str, list[Path]]) -> dict[str, list[list[str]]]:
    """Overrides of every method, by the name that tables give it: one list of them for each seed."""
    found = {PLAIN: [["drafter=none"]], "draft model": [["drafter=model"]]}
    for name, paths in folders.items():
        found[name] = [[f"drafter={name}", f"drafter.path={path.resolve()}"] for path in paths]
    if "dspark" in folders:
        found["dspark, early_stop"] = [[*overrides, *EARLY_STOP] for overrides in found["dspark"]]
    return found


def unseen_prompts(results: Path, count: int) -> Path:
    """Prompts cut from the held-out files at other places than those that training measured acceptance on."""
    cfg = configured(["recipe=dspark"])
    corpus, tokenizer = read_corpus(cfg.corpus), load_tokenizer("asset:tiny/tokenizer", PairConfig(name="tiny"))
    path = results / "prompts.jsonl"
    write_lines(path, make_prompts(corpus, tokenizer, replace(cfg.heldout, num_prompts=count), SEED))
    return path


def measured(work: Workload) -> dict[str, Any]:
    """One decode of the prompts."""
    counter = Counter()
    decoded = decode(work.cfg, work.pair, work.prompts, work.known_output, Watch(observers=(counter,)))
    seconds = decoded.clock.seconds
    share = seconds["draft"] / sum(value for stage, value in seconds.items() if stage != "prefill")
    return {
        **work.outcome([row.output_ids for row in decoded.rows]),
        **decoded.tally.counts(),
        "cpu_tokens_per_s": counter.tokens_per_s,
        "draft_cpu_ms_per_round": 1000 * share * counter.cpu_s / decoded.tally.num_verify_calls,
        "draft_share": share,
        "calibration_error": counter.calibration_error,
    }


def measure(
    all_methods: dict[str, list[list[str]]], data: Path, batch: int, given: argparse.Namespace
) -> list[list[str]]:
    """The table's lines of one batch size."""
    suite = Suite(cache=str(given.results / "references"), data=str(data), threads=1)
    loads = Workloads(suite, ["pair=tiny"])
    study = Study(
        title="heads",
        pairs=["tiny"],
        methods=list(all_methods),
        batches=[batch],
        max_new_tokens=8 if given.rehearse else given.max_new_tokens,
        min_prompts=4 if given.rehearse else given.num_prompts,
        prompts_per_row=1,
        data=str(data),
    )
    overrides = {f"{name} {i}": of_seed for name, seeds in all_methods.items() for i, of_seed in enumerate(seeds)}
    path, names, warm = given.results / f"batch_{batch}.json", list(overrides), set[str]()
    records: dict[str, list[dict[str, Any]]] = json.loads(path.read_text()) if path.exists() else {}
    if list(records) != names:
        records = {name: [] for name in names}
    for turn in range(len(records[names[0]]), given.turns):
        found = {}
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            method = Method(overrides=[*SHARED, *overrides[name]])
            work = loads.of(BenchCell("heads", "tiny", None, batch, name), study, method.overrides)
            if name not in warm:
                warm_up(work, method)
                warm.add(name)
            found[name] = measured(work)
            print(f"batch {batch}, turn {turn + 1} of {given.turns}: {name}", flush=True)
        for name in names:
            records[name].append(found[name])
        write_json(path, records)
    return [
        line(batch, name, [records[f"{name} {i}"] for i in range(len(seeds))], records[f"{PLAIN} 0"])
        for name, seeds in all_methods.items()
    ]


def line(batch: int, name: str, seeds: list[list[dict[str, Any]]], plain: list[dict[str, Any]]) -> list[str]:
    """One method: means over seeds of counts, medians over seeds and turns of times, and ranges of both."""
    lengths = [found[0]["mean_acceptance_length"] for found in seeds]
    rates = [found[0]["acceptance_rate"] for found in seeds if found[0]["acceptance_rate"] is not None]
    errors = [found[0]["calibration_error"] for found in seeds if found[0]["calibration_error"] is not None]
    turns = [record for found in seeds for record in found]
    ratios = [
        record["cpu_tokens_per_s"] / other["cpu_tokens_per_s"]
        for found in seeds
        for record, other in zip(found, plain, strict=True)
    ]
    spread = f" [{min(lengths):.2f}, {max(lengths):.2f}]" if len(lengths) > 1 else ""
    return [
        name,
        str(batch),
        f"{statistics.mean(lengths):.2f}{spread}",
        f"{statistics.mean(rates):.2f}" if rates else "",
        f"{statistics.median(record['draft_cpu_ms_per_round'] for record in turns):.2f}",
        f"{statistics.median(record['cpu_tokens_per_s'] for record in turns):,.0f}",
        f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]",
        f"{statistics.mean(errors):.3f}" if errors else "",
        f"{sum(record['num_exact'] for record in turns)}/{sum(record['num_prompts'] for record in turns)}",
    ]


HEADINGS = ["drafter", "batch", "tokens/call", "accept", "draft ms/round", "tokens/cpu-s", "vs plain", "ECE", "exact"]


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["train", "measure"], help="that part; without it both")
    parser.add_argument("--recipes", default=",".join(RECIPES), help="of the heads, with commas")
    parser.add_argument("--seeds", default="1,2,3", help="of the fits, with commas")
    parser.add_argument("--minutes", type=float, default=10, help="of each fit")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--num-prompts", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--results", type=Path, default=Path("results/heads"))
    parser.add_argument("--out", type=Path, help="the table (default: heads.md beside this file)")
    given = parser.parse_args()
    given.results = given.results / ("rehearsal" if given.rehearse else "full")
    seeds = [int(seed) for seed in given.seeds.split(",")]
    folders: dict[str, list[Path]] = {}
    for name in given.recipes.split(","):
        if given.only == "measure":
            folders[name] = [given.results / f"{name}_{seed}" / "export" for seed in seeds]
        else:
            folders[name] = [train_head(name, seed, given.minutes, given.results, given.rehearse) for seed in seeds]
    if given.only == "train":
        return
    lines, data = list[list[str]](), unseen_prompts(given.results, given.num_prompts)
    for batch in map(int, given.batches.split(",")):
        lines += measure(methods(folders), data, batch, given)
        table = markdown(text_table(HEADINGS, lines))
        out = given.out or (given.results if given.rehearse else FOLDER) / "heads.md"
        head = f"Pair tiny, gamma 4, {given.max_new_tokens} new tokens, seeds {given.seeds}, {given.turns} turns."
        out.write_text(f"{head}\n\n{table}")
        print(table, flush=True)


if __name__ == "__main__":
    main()
