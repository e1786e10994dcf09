"""Published figures beside ours: a table for every experiment that a report's points belong to.

A checkout holds the figures in ``experiments/paper/published.csv``, described in the README beside it; an installed
package has none.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from specdec.analysis import Record
from specdec.core.columns import COLUMNS
from specdec.core.tables import EMPTY, Cell, Column, Table
from specdec.report.content import ReportContent

FILE = Path(__file__).resolve().parents[2] / "experiments" / "paper" / "published.csv"
_CAPTION = (
    "The paper: A100-80GB, float16, Spec-Bench (arXiv 2510.22876). Ours: the pair, data and machine of this report."
)
Place = tuple[str, int, str | None]
"""Where a published figure belongs: method, batch size, kind of prompt lengths."""


def published() -> dict[str, list[Record]]:
    """Published figures by experiment."""
    found: dict[str, list[Record]] = {}
    if FILE.is_file():
        with FILE.open(encoding="utf-8", newline="") as stream:
            for line in csv.DictReader(stream):
                row: dict[str, Any] = {key: text or None for key, text in line.items()}
                row |= {"batch": int(line["batch"]), "value": float(line["value"])}
                found.setdefault(line["experiment"], []).append(row)
    return found


def published_tables(content: ReportContent) -> list[Table]:
    """One table per published experiment that a finished point belongs to."""
    tables = []
    for experiment, figures in published().items():
        points = [point for group in content.groups if group.experiment == experiment for point in group.done]
        tables += [_table(content, experiment, figures, points)] if points else []
    return tables


def _table(content: ReportContent, experiment: str, figures: list[Record], points: list[Record]) -> Table:
    """A row per published place and point of ours at that place; columns per metric, theirs before ours."""
    metrics = [COLUMNS[name] for name in dict.fromkeys(row["metric"] for row in figures)]
    metrics = [replace(metric, pattern=",.1f") if metric.key == "tokens_per_s" else metric for metric in metrics]
    pairs = list(dict.fromkeys(row["pair"] for row in figures))
    pairs = [pair for pair in pairs if pair in {point["pair"] for point in points}] or pairs
    lengths = [Column("prompt lengths", "lengths")] if any(row["lengths"] for row in figures) else []
    columns = [Column("method", "method"), COLUMNS["pair"], COLUMNS["batch"], *lengths]
    for metric in metrics:
        of_pairs = [f"{metric.heading}, paper{f' {pair}' if pair else ''}" for pair in pairs]
        columns += [Column(heading, "", "g") for heading in [*of_pairs, f"{metric.heading}, ours"]]
    rows = []
    for place in dict.fromkeys(map(_place, figures)):
        method, batch, kind = place
        theirs = {(row["metric"], row["pair"]): row for row in figures if _place(row) == place}
        ours: list[Record | None] = [*_at(place, points)]
        for point in ours or [None]:
            name, pair = (point["method"], point["pair"]) if point else (method, "-")
            cells = [Cell(name), Cell(pair), Cell(str(batch), "", batch), *([Cell(kind)] if kind else [])]
            for metric in metrics:
                cells += [_published_cell(theirs.get((metric.name, pair)), metric) for pair in pairs]
                cells.append(metric.cell(point, content.interval(point, metric.name)) if point else EMPTY)
            rows.append(cells)
    return Table(columns, rows, experiment.replace("_", " ").replace("paper ", "Paper: "), _CAPTION)


def _place(row: Record) -> Place:
    return row["method"], row["batch"], row["lengths"]


def _at(place: Place, points: list[Record]) -> Iterator[Record]:
    """Our points at a place of the paper, with their speed over the method's own batch 1."""
    for point in points:
        if (point["scheduler"], point["batch"]) == place[:2] and place[2] in (None, point.get("lengths")):
            same = [p for p in points if all(p[key] == point[key] for key in ("label", "method", "pair", "data"))]
            alone = next((p["tokens_per_s"] for p in same if p["batch"] == 1), None)
            yield {**point, "speedup_vs_own_batch_1": point["tokens_per_s"] / alone if alone else None}


def _published_cell(row: Record | None, metric: Column) -> Cell:
    if row is None:
        return EMPTY
    text = metric.text(row["value"])
    return Cell(f"about {text}" if row["approximate"] else text, "", row["value"])
