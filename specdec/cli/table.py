"""The result table that a run or a sweep ends with."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from specdec.config.labels import tell_apart
from specdec.core.columns import columns
from specdec.core.files import flatten
from specdec.core.siblings import CHAIN
from specdec.core.tables import record_table

WIDTH = 180  # where the output is no terminal
USUAL = "pretrained"  # weights that need no mention
_TITLE = (
    *("pair", "weights", "data", "num_prompts", "max_new_tokens", "temperature", "dtype"),
    *("alignment", "drafter", "tree", "verifier"),
)
_VARIED = ("execution", "draft_length", "lengths", "batching", "window")  # shown where the points differ in them
_COLUMNS = [
    replace(column, pattern=".0%") if column.pattern == ".1%" else column
    for column in columns(
        *("scheduler", "pair", "weights", "alignment", "drafter", "tree", "verifier", *_VARIED, "batch", "gamma"),
        *("temperature", "tokens_per_s", "served_tokens_per_s", "speedup_vs_ar", "acceptance_rate", "nodes_per_round"),
        *("mean_acceptance_length", "draft_share", "verify_share", "align_share", "grouping_rate", "latency_s.p50"),
        *("latency_s.p99", "ttft_s.p99", "wait_rounds.max", "queue_length.mean", "num_exact"),
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
    console.print(_table(outcomes, shared))
    if any(outcome.get("speedup_vs_ar") is not None for outcome in outcomes):
        console.print(
            "vs plain: speed relative to scheduler=plain (continuous batches without drafts) at the same batch size",
            style="dim",
        )
    for outcome in outcomes:
        if outcome["status"] == "failed":
            console.print(f"failed: {' '.join(outcome['overrides'])}: {outcome['error']}", style="red")
    paths = [Path(outcome["path"]) for outcome in outcomes if outcome.get("path")]
    for folder in sorted({str(path.parent) for path in paths}) if len(outcomes) > 1 else paths:
        console.print(f"results: {folder}", soft_wrap=True)


def _table(outcomes: list[dict[str, Any]], shared: dict[str, Any]) -> Table:
    """Every column that says something which the title does not."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    is_online = any("wait_rounds.max" in outcome for outcome in outcomes)
    has_trees = any(outcome.get("tree", CHAIN) != CHAIN for outcome in outcomes)
    left_out = {*shared, *(() if is_online else ("ttft_s.p99",)), *(() if has_trees else ("tree", "nodes_per_round"))}
    whole = record_table(_COLUMNS, outcomes)
    kept = []
    for column, *cells in zip(whole.columns, *whole.rows, strict=True):
        texts = [cell.text for cell in cells]
        says_nothing = set(texts) <= {"", "-"} or (column.name in _VARIED and len(set(texts)) == 1)
        if column.name in left_out or says_nothing:
            continue
        shown.add_column(column.heading, justify="left" if column.is_text else "right", no_wrap=True)
        kept.append(texts)
    for row in zip(*kept, strict=True):
        shown.add_row(*row)
    return shown
