"""From measurements to figures: medians, and ratios to the baseline over the same turns."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, fields
from typing import Any

from specdec.bench.claims import judge
from specdec.bench.measurements import Records, label, metric_ratio
from specdec.bench.plan import BenchCell, cells_of
from specdec.bench.suite import DONE, Library, Study, Suite
from specdec.config.labels import tell_apart
from specdec.report.intervals import median

_OF_THE_MACHINE = ("cache", "peers")  # settings that name folders of it
_MEDIANS = (
    *("tokens_per_s", "decode_tokens_per_s", "wall_s", "decode_s", "prefill_s", "draft_s", "verify_s", "align_s"),
    *("schedule_s", "other_s", "alignment_overhead", "align_s_per_round", "loop_efficiency", "forward_bound_s"),
    *("peak_memory_bytes", "bandwidth_share", "compute_share", "acceptance_rate", "mean_acceptance_length"),
    *("grouping_rate", "warm_up_s"),
)


def by_cell(records: dict[str, dict[str, Any]]) -> Records:
    """Measurements by what they belong to, in the order of their turns."""
    cells: Records = defaultdict(list)
    for record in sorted(records.values(), key=lambda record: int(record["repeat"])):
        cells[BenchCell(*(record[field.name] for field in fields(BenchCell)))].append(record)
    return dict(cells)


def summarize(suite: Suite, library: Library, records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The document that tables and plots are made from."""
    cells = by_cell(records)
    figures = [_figures(cell, study, cells) for name, study in suite.studies.items() for cell in cells_of(name, study)]
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


def _figures(cell: BenchCell, study: Study, cells: Records) -> dict[str, Any]:
    found = cells.get(cell, [])
    done = [record for record in found if record["status"] == DONE]
    entry: dict[str, Any] = {**asdict(cell), "num_measured": len(done)}
    if not done:
        last = found[-1] if found else {"status": "not measured", "error": ""}
        return {**entry, "status": last["status"], "error": last.get("error", "")}
    for key in _MEDIANS:
        values = [record[key] for record in done if record.get(key) is not None]
        entry[key] = asdict(median(values)) if values else None
    over_baseline = metric_ratio(cells, cell, study.baseline, "tokens_per_s") if study.baseline else None
    return {
        **entry,
        "status": DONE,
        "num_prompts": done[0]["num_prompts"],
        "num_prompt_tokens": done[0]["num_prompt_tokens"],
        "num_exact": min(record["num_exact"] for record in done),  # the worst turn
        "versions": done[-1].get("versions"),
        "ratio": asdict(over_baseline) if over_baseline else None,
        "target_fingerprint": done[-1].get("target_fingerprint"),
        "method": label(cells, cell),
    }
