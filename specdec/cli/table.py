"""The result table that a run or a sweep ends with."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from specdec.analysis import name_methods
from specdec.config.labels import tell_apart
from specdec.core.columns import columns
from specdec.core.files import flatten
from specdec.core.siblings import CHAIN
from specdec.core.tables import Column, record_table

WIDTH = 120  # where the output is no terminal
_GAP = 3  # between two columns
_ALWAYS = ("scheduler", "batch", "num_exact", "tokens_per_s", "speedup_vs_ar")  # shown however narrow the table is
_SPEED = "tokens_per_s"
PLUS_MINUS = "\u00b1"
USUAL = "pretrained"  # weights that need no mention
_TITLE = (
    *("pair", "weights", "data", "num_prompts", "max_new_tokens", "temperature", "dtype"),
    *("alignment", "drafter", "tree", "verifier"),
)
_VARIED = (
    "execution",
    "numerics",
    "draft_length",
    "budget",
    "lengths",
    "batching",
    "window",
)  # shown where the points differ in them
_COLUMNS = [
    replace(column, pattern=".0%") if column.pattern == ".1%" else column
    for column in columns(
        *("scheduler", "pair", "weights", "alignment", "drafter", "tree", "verifier", *_VARIED, "batch", "gamma"),
        *(
            "temperature",
            "num_exact",
            "tokens_per_s",
            "served_tokens_per_s",
            "speedup_vs_ar",
            "acceptance_rate",
            "nodes_per_round",
        ),
        *(
            "cut_share",
            "calibration_error",
            "mean_acceptance_length",
            "draft_share",
            "verify_share",
            "align_share",
            "grouping_rate",
            "latency_s.p50",
        ),
        *("latency_s.p99", "ttft_s.p99", "wait_rounds.max", "queue_length.mean"),
    )
]


def print_table(outcomes: list[dict[str, Any]], preset: str | None = None) -> None:
    """One row per point; columns that are the same for all of them move to the title, or are left out."""
    outcomes = [flatten(outcome) for outcome in outcomes]
    tell_apart(outcomes)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    shared = {key: outcomes[0].get(key) for key in _TITLE if len({str(o.get(key)) for o in outcomes}) == 1}
    if shared.get("weights") in (USUAL, shared.get("pair")):
        shared["weights"] = None  # nothing that needs to be said
    if shared.get("tree") == CHAIN:
        shared["tree"] = None
    title = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in shared.items() if value)
    console.print()
    console.print(f"{preset}: {title}" if preset else title, style="bold", soft_wrap=True)
    table, left_out = _table(outcomes, shared, console.width)
    console.print(table)
    for note in [*notes(outcomes), *left_out]:
        console.print(note, style="dim", soft_wrap=True)
    for outcome in outcomes:
        if outcome["status"] == "failed":
            console.print(f"failed: {' '.join(outcome['overrides'])}: {outcome['error']}", style="red")
    paths = [Path(outcome["path"]) for outcome in outcomes if outcome.get("path")]
    for folder in sorted({str(path.parent) for path in paths}) if len(outcomes) > 1 else paths:
        console.print(f"results: {folder}", soft_wrap=True)


def notes(outcomes: list[dict[str, Any]]) -> list[str]:
    """How to read the speeds: what they are relative to, what the intervals are of, and which ranks are noise."""
    said = []
    if any(outcome.get("speedup_vs_ar") is not None for outcome in outcomes):
        said.append("vs plain: relative to scheduler=plain (continuous batches without drafts) at the same batch size")
    if num_turns := max((outcome.get("num_turns", 1) for outcome in outcomes), default=1):
        over = f"{num_turns} turns, whose medians are shown" if num_turns > 1 else "the rounds of this one run"
        hint = "" if num_turns > 1 else "; repeat=3 or more also covers changes of load"
        if any(f"interval.{_SPEED}" in outcome for outcome in outcomes):
            said.append(f"{PLUS_MINUS}: 95% bootstrap interval over {over}{hint}")
    for batch in sorted({outcome["batch"] for outcome in outcomes}):
        if alike := _ranks_within_noise([outcome for outcome in outcomes if outcome["batch"] == batch]):
            said.append(f"batch {batch}: the order by speed is within noise (intervals overlap) for {', '.join(alike)}")
    return said


def _ranks_within_noise(outcomes: list[dict[str, Any]]) -> list[str]:
    """Pairs of neighbours in the order by speed whose intervals overlap."""
    known = [dict(outcome) for outcome in outcomes if f"interval.{_SPEED}" in outcome]
    name_methods(known)
    known.sort(key=lambda outcome: float(outcome[_SPEED]), reverse=True)
    return [
        f"{fast['method']} and {slow['method']}"
        for fast, slow in pairwise(known)
        if slow[f"interval.{_SPEED}"][1] >= fast[f"interval.{_SPEED}"][0]
    ]


def _with_spread(column: Column, text: str, outcome: dict[str, Any]) -> str:
    """A speed with the half-width of its interval: the longer half, in percent or as a ratio."""
    interval, value = outcome.get(f"interval.{column.key}"), outcome.get(column.key)
    if not interval or not value or interval[0] == interval[1]:
        return text
    half = max(interval[1] - value, value - interval[0])
    return f"{text} {PLUS_MINUS}{half:.2f}" if column.unit == "x" else f"{text} {PLUS_MINUS}{half / value:.0%}"


def _table(outcomes: list[dict[str, Any]], shared: dict[str, Any], width: int) -> tuple[Table, list[str]]:
    """Every column that says something which the title does not, as far as they fit; and which did not."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    is_online = any("wait_rounds.max" in outcome for outcome in outcomes)
    has_trees = any(outcome.get("tree", CHAIN) != CHAIN for outcome in outcomes)
    left_out = {*shared, *(() if is_online else ("ttft_s.p99",)), *(() if has_trees else ("tree", "nodes_per_round"))}
    whole = record_table(_COLUMNS, outcomes)
    kept: list[tuple[Column, list[str]]] = []
    for column, *cells in zip(whole.columns, *whole.rows, strict=True):
        texts = [_with_spread(column, cell.text, outcome) for cell, outcome in zip(cells, outcomes, strict=True)]
        says_nothing = set(texts) <= {"", "-"} or (column.name in _VARIED and len(set(texts)) == 1)
        if column.name not in left_out and not says_nothing:
            kept.append((column, texts))
    too_many = list[str]()
    optional = [part for part in kept if part[0].name not in _ALWAYS]
    while optional and sum(max(map(len, (column.heading, *texts))) + _GAP for column, texts in kept) > width:
        kept.remove(optional[-1])
        too_many.insert(0, optional.pop()[0].heading)
    for column, _ in kept:
        shown.add_column(column.heading, justify="left" if column.is_text else "right", no_wrap=True)
    for row in zip(*(texts for _, texts in kept), strict=True):
        shown.add_row(*row)
    return shown, [f"left out for want of width: {', '.join(too_many)} (summary.json has them)"] if too_many else []
