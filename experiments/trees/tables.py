"""The tables of the study: tokens per round, published orderings with intervals, tokens per second.

Intervals are bootstraps over prompts (95%): of a difference, the same prompts are drawn for both sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specdec.core.tables import markdown, text_table

Side = tuple[str, str]  # tree, verifier
RESAMPLES = 2000
PUBLISHED: list[tuple[str, Side, Side]] = [  # the claim: the second keeps more than the first
    ("block >= rejection (BV, theorem)", ("chain", "rejection"), ("chain", "block")),
    ("NaiveTree > NSS (DDTE, 4.50 and 4.05)", ("paths", "naive"), ("paths", "naive_tree")),
    ("SpecInfer > NaiveTree (DDTE, 4.58 and 4.50)", ("paths", "naive_tree"), ("paths", "specinfer")),
    ("SpecTr > SpecInfer (DDTE, 4.61 and 4.58)", ("paths", "specinfer"), ("paths", "spectr")),
    ("Traversal > SpecTr (DDTE, 5.31 and 4.61)", ("paths", "spectr"), ("paths", "traversal")),
    ("Traversal > SpecInfer (DDTE, 5.31 and 4.58)", ("paths", "specinfer"), ("paths", "traversal")),
    ("Traversal > GBV", ("paths", "gbv"), ("paths", "traversal")),
    ("GBV > BV (GBV, +23%); here 3 paths of 4 and a chain of 12", ("chain", "block"), ("paths", "gbv")),
    ("Traversal > recursive rejection, siblings without replacement", ("gumbel", "recursive"), ("gumbel", "traversal")),
    ("Traversal > recursive rejection, beams", ("beam", "recursive"), ("beam", "traversal")),
    ("without replacement > i.i.d. (RSD-C and SpecInfer)", ("paths", "specinfer"), ("gumbel", "recursive")),
    ("RSD-S > RSD-C", ("gumbel", "recursive"), ("beam", "recursive")),
    ("delayed > paths under SpecInfer (DDTE)", ("paths", "specinfer"), ("delayed", "specinfer")),
    ("delayed > paths under SpecTr (DDTE)", ("paths", "spectr"), ("delayed", "spectr")),
    ("delayed > paths under Traversal (DDTE)", ("paths", "traversal"), ("delayed", "traversal")),
    ("Traversal on paths > BV (DDTE, 5.31 and 4.30)", ("chain", "block"), ("paths", "traversal")),
    ("(not published) Traversal on RSD-C > BV", ("chain", "block"), ("gumbel", "traversal")),
    ("(not published) Traversal on RSD-S > BV", ("chain", "block"), ("beam", "traversal")),
]


def tables(results: dict[str, Any]) -> str:
    """All of them, as Markdown."""
    paired: dict[tuple[str, str], dict[str, Any]] = {}
    for key, found in results.items():
        kind, name, *rest = key.split(" ", 3)
        if kind == "paired":
            paired.setdefault((name, rest[0]), {})[rest[1]] = found
    order = list(dict.fromkeys(name for name, _ in paired))
    paired = dict(sorted(paired.items(), key=lambda item: (order.index(item[0][0]), float(item[0][1]))))
    parts = [_acceptance(paired), _orderings(paired), *_speeds(results, paired)]
    return "\n".join(parts)


def _counts(of_point: dict[str, Any], side: Side) -> NDArray[Any]:
    """(prompts, 2): tokens and verdicts."""
    return np.array(of_point[side[0]]["counts"][side[1]], dtype=float)


def _ratio(counts_P2: NDArray[Any]) -> float:
    return float(counts_P2[:, 0].sum() / counts_P2[:, 1].sum())


def difference(of_point: dict[str, Any], first: Side, second: Side) -> tuple[float, float, float]:
    """How many percent more tokens per round the second keeps, with its interval."""
    one_P2, two_P2 = _counts(of_point, first), _counts(of_point, second)
    drawn_RP = np.random.default_rng(0).integers(len(one_P2), size=(RESAMPLES, len(one_P2)))
    sums_R2, others_R2 = one_P2[drawn_RP].sum(1), two_P2[drawn_RP].sum(1)
    ratios_R = (others_R2[:, 0] / others_R2[:, 1]) / (sums_R2[:, 0] / sums_R2[:, 1])
    low, high = np.quantile(ratios_R, [0.025, 0.975])
    return tuple(100 * (value - 1) for value in (_ratio(two_P2) / _ratio(one_P2), low, high))  # type: ignore[return-value]


def _acceptance(paired: dict[tuple[str, str], dict[str, Any]]) -> str:
    points = list(paired)
    sides = [(tree, verifier) for tree, found in paired[points[0]].items() for verifier in found["counts"]]
    cells = [
        [tree, verifier, *(f"{_ratio(_counts(paired[point], (tree, verifier))):.2f}" for point in points)]
        for tree, verifier in sides
    ]
    overlaps = [f"{np.mean([found['overlap'] for found in paired[point].values()]):.2f}" for point in points]
    nodes = [f"{np.mean([found['nodes'] for found in paired[point].values()]):.1f}" for point in points]
    cells += [["*sum min(p, q) at the root*", "", *overlaps], ["*nodes per round*", "", *nodes]]
    head = ["tree", "verifier", *(f"{name}, T {temperature}" for name, temperature in points)]
    return f"## Tokens per round at the same roots (block efficiency)\n\n{markdown(text_table(head, cells))}"


def _orderings(paired: dict[tuple[str, str], dict[str, Any]]) -> str:
    cells = []
    for claim, first, second in PUBLISHED:
        shown = []
        for of_point in paired.values():
            value, low, high = difference(of_point, first, second)
            mark = "" if low <= 0 <= high else " **yes**" if low > 0 else " **no**"
            shown.append(f"{value:+.1f}% [{low:+.1f}, {high:+.1f}]{mark}")
        cells.append([claim, *shown])
    head = ["published", *(f"{name}, T {temperature}" for name, temperature in paired)]
    return f"## Published orderings\n\n{markdown(text_table(head, cells))}"


def _speeds(results: dict[str, Any], paired: dict[tuple[str, str], dict[str, Any]]) -> Iterator[str]:
    """Per pair: tokens/s of the timed runs at temperature 1."""
    names = dict.fromkeys(name for name, _ in paired)
    for name in names:
        runs: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
        for key, found in results.items():
            if key.startswith(f"timed {name} "):
                batch, rest = key.removeprefix(f"timed {name} ").split(" ", 1)
                tree, verifier = rest.split(": ")
                runs.setdefault((tree, verifier), {})[int(batch)] = found
        if not runs:
            continue
        batches = sorted({batch for of_side in runs.values() for batch in of_side})
        speeds = {
            side: {n: run["tokens"] / run["seconds"] for n, run in of_side.items()} for side, of_side in runs.items()
        }
        plain = speeds["none", "naive"]
        cells = []
        for side, of_side in runs.items():
            emitted, row_rounds = (sum(run[part] for run in of_side.values()) for part in ("tokens", "row_rounds"))
            shown = [f"{speeds[side][n]:.0f} ({speeds[side][n] / plain[n]:.2f}x)" for n in batches]
            cells.append([*side, f"{emitted / row_rounds:.2f}", *shown])
        head = ["tree", "verifier", "tokens/round", *(f"batch {batch}" for batch in batches)]
        table = markdown(text_table(head, cells))
        yield f"## Tokens per second, temperature 1, pair {name} (x: against plain decoding)\n\n{table}"
