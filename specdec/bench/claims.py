"""Whether the claims of a suite hold: metrics, and ratios of them, held against their bounds."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from specdec.bench.measurements import Records, by_turn, label, metric_ratio, ratio_over
from specdec.bench.plan import BenchCell, cells_of
from specdec.bench.suite import Claim, Library, Suite
from specdec.report.intervals import Estimate, median


def judge(claim: Claim, suite: Suite, library: Library, cells: Records) -> list[dict[str, Any]]:
    """One line per cell that a claim is about: the figure, its bounds, and whether it keeps them."""
    found = cells_of(
        claim.study, suite.studies[claim.study], claim.pairs, claim.contexts, [claim.method], claim.batches
    )
    bounds = [f">= {claim.at_least:g}"] if claim.at_least is not None else []
    bounds += [f"<= {claim.at_most:g}"] if claim.at_most is not None else []
    lines = []
    for cell in found:
        estimate = _figure(claim, library, cells, cell)
        lines.append(
            {
                **asdict(cell),
                "method": label(cells, cell),
                "text": claim.text,
                "metric": claim.metric,
                "over": claim.over,
                "value": asdict(estimate) if estimate else None,
                "wanted": " and ".join(bounds) or "as it is",
                "verdict": _verdict(claim, estimate, bool(bounds)),
            }
        )
    return lines


def _verdict(claim: Claim, estimate: Estimate | None, has_bounds: bool) -> str:
    if estimate is None:
        return "not measured"
    if not has_bounds:
        return "shown"
    above = claim.at_least is None or estimate.value >= claim.at_least
    below = claim.at_most is None or estimate.value <= claim.at_most
    return "met" if above and below else "NOT MET"


def _figure(claim: Claim, library: Library, cells: Records, cell: BenchCell) -> Estimate | None:
    values = by_turn(cells, cell, claim.metric)
    if not values:
        return None
    if claim.over is None:
        return median(list(values.values()))
    kind, _, name = claim.over.partition(":")
    if kind == "published" and name:
        return ratio_over(values, _published(claim, library, cells, cell, name))
    return metric_ratio(cells, cell, claim.over, claim.metric)


def _published(claim: Claim, library: Library, cells: Records, cell: BenchCell, name: str) -> dict[int, float]:
    """A figure from another machine for every turn, scaled by the yardstick (if any) that ran here and there."""

    def published(of: str) -> float | None:
        speed = library.published.get(of, {}).get("tokens_per_s", {}).get(cell.pair, {}).get(cell.batch)
        return float(speed) if speed else None

    figure = published(name)
    if not figure:
        return {}
    if claim.yardstick is None:
        return dict.fromkeys(by_turn(cells, cell, claim.metric), figure)
    method, _, there = claim.yardstick.partition("=")
    here, then = by_turn(cells, replace(cell, method=method), claim.metric), published(there)
    return {turn: figure * value / then for turn, value in here.items()} if then else {}
