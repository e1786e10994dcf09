"""Measurements by cell and turn, and ratios of their medians."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from specdec.bench.plan import BenchCell
from specdec.bench.suite import DONE
from specdec.config.drafter_weights import UNTRAINED
from specdec.report.intervals import Estimate, ratio_of_medians

Records = dict[BenchCell, list[dict[str, Any]]]


def by_turn(cells: Records, cell: BenchCell, metric: str) -> dict[int, float]:
    """A metric of a cell in every turn that has it."""
    done = [record for record in cells.get(cell, []) if record["status"] == DONE]
    return {int(record["repeat"]): float(record[metric]) for record in done if record.get(metric) is not None}


def metric_ratio(cells: Records, cell: BenchCell, method: str, metric: str) -> Estimate | None:
    """A metric over that of another method in the same cell; None where the two measured different targets."""
    other = replace(cell, method=method)
    targets = {record.get("target_fingerprint") for each in (cell, other) for record in cells.get(each, [])} - {None}
    return ratio_over(by_turn(cells, cell, metric), by_turn(cells, other, metric)) if len(targets) <= 1 else None


def ratio_over(values: dict[int, float], others: dict[int, float]) -> Estimate | None:
    """The ratio of medians over the turns in which both were measured."""
    turns = sorted(values.keys() & others.keys())
    return ratio_of_medians([values[t] for t in turns], [others[t] for t in turns]) if turns else None


def label(cells: Records, cell: BenchCell) -> str:
    """A cell's method as tables name it: they mention a drafter with untrained weights."""
    is_untrained = any(UNTRAINED in str(record.get("drafter")) for record in cells.get(cell, []))
    return f"{cell.method} ({UNTRAINED})" if is_untrained else cell.method
