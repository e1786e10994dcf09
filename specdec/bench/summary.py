"""From measurements to figures: medians, ratios against the baseline of the same turns, and what was claimed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, replace
from typing import Any

from specdec.bench.plan import Cell
from specdec.bench.run import DONE
from specdec.bench.suite import Claim, Library, Study, Suite
from specdec.config.drafter_weights import UNTRAINED
from specdec.config.labels import tell_apart
from specdec.report.medians import Estimate, median, ratio_of_medians

Records = dict[Cell, list[dict[str, Any]]]
_OF_THE_MACHINE = ("cache", "peers")  # settings that name folders of it
_MEDIANS = (
    *(
        "tokens_per_s",
        "decode_tokens_per_s",
        "wall_s",
        "decode_s",
        "prefill_s",
        "draft_s",
        "verify_s",
        "align_s",
        "schedule_s",
    ),
    *("other_s", "alignment_overhead", "align_s_per_round", "loop_efficiency", "forward_bound_s", "peak_memory_bytes"),
    *("bandwidth_share", "compute_share", "acceptance_rate", "mean_acceptance_length", "grouping_rate", "warm_up_s"),
)


def by_cell(records: dict[str, dict[str, Any]]) -> Records:
    """Measurements by what they belong to, in the order of their turns."""
    cells: Records = defaultdict(list)
    for record in records.values():
        cells[Cell(*(record[key] for key in ("study", "pair", "context", "batch", "method")))].append(record)
    return {cell: sorted(found, key=lambda record: int(record["repeat"])) for cell, found in cells.items()}


def summarize(suite: Suite, library: Library, records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The document that tables and plots are made from."""
    cells = by_cell(records)
    figures = []
    for name, study in suite.studies.items():
        for pair in study.pairs:
            for context in study.contexts:
                for method in study.methods:
                    for batch in study.batches:
                        cell = Cell(name, pair, context, batch, method)
                        figures.append(_figures(cell, study, cells))
    tell_apart(figures)
    places = list(dict.fromkeys((entry["study"], entry["pair"], entry["context"]) for entry in figures))
    figures.sort(key=lambda entry: places.index((entry["study"], entry["pair"], entry["context"])))
    return {
        "suite": {key: value for key, value in asdict(suite).items() if key not in _OF_THE_MACHINE},
        "cells": figures,
        "max_load_average": max((record.get("load_average") or 0.0 for record in records.values()), default=None),
        "claims": [line for claim in suite.claims for line in judge(claim, suite, library, cells)],
        "published": library.published,
        "pairs": library.pairs,
        "notes": {name: method.note for name, method in library.methods.items() if method.note},
    }


def _figures(cell: Cell, study: Study, cells: Records) -> dict[str, Any]:
    found = cells.get(cell, [])
    done = [record for record in found if record["status"] == DONE]
    entry: dict[str, Any] = {**asdict(cell), "num_measured": len(done)}
    if not done:
        last = found[-1] if found else {"status": "not measured", "error": ""}
        return {**entry, "status": last["status"], "error": last.get("error", "")}
    entry["status"] = DONE
    for key in _MEDIANS:
        values = [record[key] for record in done if record.get(key) is not None]
        entry[key] = asdict(median(values)) if values else None
    entry["num_prompts"] = done[0]["num_prompts"]
    entry["num_prompt_tokens"] = done[0]["num_prompt_tokens"]
    entry["num_exact"] = min(record["num_exact"] for record in done)  # the worst turn
    entry["versions"] = done[-1].get("versions")
    baseline = Cell(cell.study, cell.pair, cell.context, cell.batch, study.baseline) if study.baseline else None
    entry["ratio"] = _optional(_ratio(cells, cell, baseline, "tokens_per_s")) if baseline else None
    entry["target_fingerprint"] = done[-1].get("target_fingerprint")
    entry["method"] = _method(cells, cell)
    return entry


def _method(cells: Records, cell: Cell) -> str:
    """What tables call a cell's method: a drafter with untrained weights shows."""
    labels = [str(record.get("drafter")) for record in cells.get(cell, [])]
    return f"{cell.method} ({UNTRAINED})" if any(UNTRAINED in label for label in labels) else cell.method


def _ratio(cells: Records, cell: Cell, other: Cell, metric: str) -> Estimate | None:
    """The ratio of medians over the turns in which both were measured; of two targets there is none."""
    targets = {record.get("target_fingerprint") for each in (cell, other) for record in cells.get(each, [])} - {None}
    if len(targets) > 1:
        return None
    values, others = _by_turn(cells, cell, metric), _by_turn(cells, other, metric)
    turns = sorted(values.keys() & others.keys())
    return ratio_of_medians([values[t] for t in turns], [others[t] for t in turns]) if turns else None


def _by_turn(cells: Records, cell: Cell, metric: str) -> dict[int, float]:
    done = [record for record in cells.get(cell, []) if record["status"] == DONE]
    return {int(record["repeat"]): float(record[metric]) for record in done if record.get(metric) is not None}


def judge(claim: Claim, suite: Suite, library: Library, cells: Records) -> list[dict[str, Any]]:
    """One line per cell that a claim speaks of: the figure, what is wanted, and whether it is met."""
    study = suite.studies[claim.study]
    lines = []
    for pair in claim.pairs or study.pairs:
        for context in claim.contexts or study.contexts:
            for batch in claim.batches or study.batches:
                cell = Cell(claim.study, pair, context, batch, claim.method)
                value = _claimed(claim, library, cells, cell)
                verdict = "not measured" if value is None else "met" if _holds(claim, value) else "NOT MET"
                wanted = [f">= {claim.at_least:g}"] if claim.at_least is not None else []
                wanted += [f"<= {claim.at_most:g}"] if claim.at_most is not None else []
                lines.append(
                    {
                        **asdict(cell),
                        "method": _method(cells, cell),
                        "text": claim.text,
                        "metric": claim.metric,
                        "over": claim.over,
                        "value": _optional(value),
                        "wanted": " and ".join(wanted) or "as it is",
                        "verdict": verdict if wanted else "shown" if value is not None else verdict,
                    }
                )
    return lines


def _claimed(claim: Claim, library: Library, cells: Records, cell: Cell) -> Estimate | None:
    values = list(_by_turn(cells, cell, claim.metric).values())
    if not values:
        return None
    if claim.over is None:
        return median(values)
    kind, _, name = claim.over.partition(":")
    if kind == "published" and name:
        return _over_published(claim, library, cells, cell, name)
    other = Cell(cell.study, cell.pair, cell.context, cell.batch, claim.over)
    return _ratio(cells, cell, other, claim.metric)


def _over_published(claim: Claim, library: Library, cells: Records, cell: Cell, name: str) -> Estimate | None:
    """The ratio to a figure from another machine: as it is, or as a yardstick that ran on both scales it."""

    def published(of: str) -> float | None:
        figure = library.published.get(of, {}).get("tokens_per_s", {}).get(cell.pair, {}).get(cell.batch)
        return float(figure) if figure else None

    figure, values = published(name), _by_turn(cells, cell, claim.metric)
    if figure is None:
        return None
    others = dict.fromkeys(values, figure)
    if claim.yardstick is not None:
        method, _, there = claim.yardstick.partition("=")
        here, then = _by_turn(cells, replace(cell, method=method), claim.metric), published(there)
        others = {turn: figure * here[turn] / then for turn in values.keys() & here.keys()} if then else {}
    turns = sorted(others)
    return ratio_of_medians([values[t] for t in turns], [others[t] for t in turns]) if turns else None


def _holds(claim: Claim, value: Estimate) -> bool:
    return (claim.at_least is None or value.value >= claim.at_least) and (
        claim.at_most is None or value.value <= claim.at_most
    )


def _optional(estimate: Estimate | None) -> dict[str, Any] | None:
    return asdict(estimate) if estimate is not None else None
