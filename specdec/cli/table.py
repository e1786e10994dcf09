"""The result table that a run or a sweep ends with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from specdec.config.labels import tell_apart

WIDTH = 180  # where the output is no terminal
USUAL = "pretrained"  # weights that need no mention
Cell = Callable[[dict[str, Any]], str]


def print_table(outcomes: list[dict[str, Any]], preset: str | None = None) -> None:
    """One row per point; columns that are the same for all of them move to the title, or are left out."""
    outcomes = [dict(outcome) for outcome in outcomes]
    tell_apart(outcomes)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    shared = {key: _shared(outcomes, key) for key in _TITLE if len({str(o.get(key)) for o in outcomes}) == 1}
    if shared.get("weights") in (USUAL, shared.get("pair")):
        shared["weights"] = None  # nothing that needs to be said
    title = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in shared.items() if value)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    columns = [
        (heading, cell)
        for heading, cell in _COLUMNS
        if heading not in shared
        and not (heading in _VARIED and len({cell(outcome) for outcome in outcomes}) == 1)
        and any(cell(outcome) not in ("", "-") for outcome in outcomes)
    ]
    for heading, _ in columns:
        table.add_column(heading, justify="left" if heading in _LEFT else "right", no_wrap=True)
    for outcome in outcomes:
        table.add_row(*(cell(outcome) for _, cell in columns))
    console.print()
    console.print(f"{preset}: {title}" if preset else title, style="bold", soft_wrap=True)
    console.print(table)
    if any(heading == "vs plain" for heading, _ in columns):
        console.print(
            "vs plain: against scheduler=plain, which refills every place, at the same batch size", style="dim"
        )
    for outcome in outcomes:
        if outcome["status"] == "failed":
            console.print(f"failed: {' '.join(outcome['overrides'])}: {outcome['error']}", style="red")
    folders = sorted({str(Path(o["path"]).parent) for o in outcomes if o.get("path")})
    if len(outcomes) == 1 and outcomes[0].get("path"):
        folders = [outcomes[0]["path"]]
    for folder in folders:
        console.print(f"results: {folder}", soft_wrap=True)


_TITLE = (
    *("pair", "weights", "data", "num_prompts", "max_new_tokens", "temperature", "dtype"),
    *("alignment", "drafter", "verifier"),
)
_VARIED = ("execution", "draft_length", "lengths", "batching", "window")  # shown where the points differ in them
_LEFT = ("method", *_VARIED, "alignment", "drafter", "verifier", "pair", "weights")


def _shared(outcomes: list[dict[str, Any]], key: str) -> Any:
    values = {outcome.get(key) for outcome in outcomes}
    return values.pop() if len(values) == 1 else None


def _text(key: str) -> Cell:
    return lambda outcome: str(outcome.get(key) or "")


def _number(key: str, pattern: str) -> Cell:
    def cell(outcome: dict[str, Any]) -> str:
        value = outcome.get(key)
        return "-" if value is None else format(value, pattern)

    return cell


def _share(key: str) -> Cell:
    """A stage's share of the decode time."""

    def cell(outcome: dict[str, Any]) -> str:
        if outcome.get(key) is None or not outcome.get("decode_s"):
            return "-"
        return f"{100 * outcome[key] / outcome['decode_s']:.0f}%"

    return cell


def _method(outcome: dict[str, Any]) -> str:
    return str(outcome["scheduler"])


def _speedup(outcome: dict[str, Any]) -> str:
    value = outcome.get("speedup_vs_ar")
    return "-" if value is None else f"{value:.2f}x"


def _exact(outcome: dict[str, Any]) -> str:
    if outcome["status"] != "done":
        return str(outcome["status"])
    if outcome.get("exact_match") is None:
        return "-"
    return f"{outcome['num_exact']}/{outcome['num_prompts']}"


_COLUMNS: list[tuple[str, Cell]] = [
    ("method", _method),
    *((key, _text(key)) for key in ("pair", "weights", "alignment", "drafter", "verifier")),
    *((key, _text(key)) for key in _VARIED),
    ("batch", _number("batch", "d")),
    ("gamma", _number("gamma", "d")),
    ("temperature", _number("temperature", "g")),
    ("tokens/s", _number("tokens_per_s", ",.0f")),
    ("served/s", _number("served_tokens_per_s", ",.0f")),
    ("vs plain", _speedup),
    ("accept", _number("acceptance_rate", ".2f")),
    ("tokens/call", _number("mean_acceptance_length", ".2f")),
    ("draft", _share("draft_s")),
    ("verify", _share("verify_s")),
    ("align", _share("align_s")),
    ("grouped", _number("grouping_rate", ".0%")),
    ("p50 s", lambda o: _number("p50", ".2f")(o.get("latency_s") or {})),
    ("p99 s", lambda o: _number("p99", ".2f")(o.get("latency_s") or {})),
    ("ttft p99", lambda o: _number("p99", ".2f")((o.get("wait_rounds") and o.get("ttft_s")) or {})),
    ("waits", lambda o: _number("max", "d")(o.get("wait_rounds") or {})),
    ("queue", lambda o: _number("mean", ".1f")(o.get("queue_length") or {})),
    ("exact", _exact),
]
