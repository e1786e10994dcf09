"""Which plots a group of points gets, and the numbers that they show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from specdec.analysis import Record, is_plain
from specdec.core.files import read_lines
from specdec.report import plots
from specdec.report.content import Content, Group, series
from specdec.report.intervals import of_ratio
from specdec.report.plots import Curve
from specdec.report.svg import STAGES

if TYPE_CHECKING:
    import pandas as pd

MAX_ROWS = 60  # of a plot with a row per point; more cannot be read


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot with what it shows and how to read it."""

    name: str
    title: str
    caption: str
    svg: str
    has_stages: bool = False  # its legend is that of the stages


def figures(content: Content, group: Group, number: int) -> list[Figure]:
    """All plots of a group that its points have the numbers for."""
    made = []
    for name, title, caption, draw in _FIGURES:
        svg = draw(content, group, f"{name}-{number}")
        if svg:
            made.append(Figure(name, title, caption, svg, name == "time_split"))
    return made


def methods(group: Group) -> list[str]:
    """The group's methods in a fixed order, plain decoding last: a method's place is its colour."""
    named = {series(point, group.labels): point for point in reversed(group.done)}
    return sorted(named, key=lambda name: (is_plain(named[name]), group.labels.index(named[name]["label"]), name))


def _curves(content: Content, group: Group, key: str, points: Sequence[Record] | None = None) -> list[Curve]:
    order = methods(group)
    found: dict[str, Curve] = {}
    for point in group.done if points is None else points:
        if point.get(key) is None:
            continue
        name = series(point, group.labels)
        curve = found.setdefault(name, Curve(order.index(name), name, dashed=is_plain(point)))
        curve.values[point["batch"]] = (point[key], content.interval(point, key))
    return sorted(found.values(), key=lambda curve: curve.index)


def _drafting(group: Group) -> list[Record]:
    return [point for point in group.done if not is_plain(point)]


def _throughput(content: Content, group: Group, name: str) -> str | None:
    found = _curves(content, group, "tokens_per_s")
    return plots.curves(name, found, ",.0f") if found else None


def _speedup(content: Content, group: Group, name: str) -> str | None:
    told = [point for point in group.done if not is_plain(point) or point.get("speedup_vs_ar") not in (None, 1.0)]
    found = _curves(content, group, "speedup_vs_ar", told)
    return plots.curves(name, found, ".2f", at_one=True) if found else None


def _scaling(content: Content, group: Group, name: str) -> str | None:
    found = [curve for curve in _curves(content, group, "tokens_per_s") if 1 in curve.values and len(curve.values) > 1]
    for curve in found:
        alone = curve.values[1][0]
        curve.values = {x: (value / alone, None) for x, (value, _) in curve.values.items()}
    return plots.curves(name, found, ".2f", at_one=True) if found else None


def _overhead(content: Content, group: Group, name: str) -> str | None:
    found = _curves(content, group, "alignment_overhead", _drafting(group))
    return plots.curves(name, found, ".1f", scale=100) if found else None


def _grouping(content: Content, group: Group, name: str) -> str | None:
    found = _curves(content, group, "grouping_rate", _drafting(group))
    return plots.curves(name, found, ".0f", scale=100) if found else None


def _rows(content: Content, group: Group) -> list[tuple[int, str, Record]]:
    """A row per finished point, method by method, with its name."""
    order = methods(group)
    named = sorted((order.index(series(p, group.labels)), p["batch"], at) for at, p in enumerate(group.done))
    first = {name.partition(" ")[0] for name in order}
    short = [name.partition(" ")[2] or name if len(first) == 1 else name for name in order]
    return [(index, f"{short[index]} b{batch}", group.done[at]) for index, batch, at in named][:MAX_ROWS]


def _time_split(content: Content, group: Group, name: str) -> str | None:
    rows = [
        (index, label, {stage: point.get(f"{stage}_s") or 0.0 for stage in STAGES})
        for index, label, point in _rows(content, group)
        if point.get("decode_s") and not is_plain(point)
    ]
    return plots.stacked(name, rows) if rows else None


def _percentiles(key: str, xlabel: str) -> Callable[[Content, Group, str], str | None]:
    def draw(content: Content, group: Group, name: str) -> str | None:
        keys = [f"{key}.p{p}" for p in (50, 90, 99)]
        rows = [
            (index, label, [point[k] for k in keys])
            for index, label, point in _rows(content, group)
            if all(point.get(k) is not None for k in keys)
        ]
        return plots.ranges(name, rows, xlabel) if rows else None

    return draw


def _queue(content: Content, group: Group, name: str) -> str | None:
    """Only of the largest batch size: more curves than methods could not be told apart."""
    order, found = methods(group), []
    largest = max((point["batch"] for point in group.done), default=0)
    for point in group.done:
        series_lines = list(read_lines(Path(point["folder"]) / "queue.jsonl")) if point["batch"] == largest else []
        if series_lines:
            times, waiting = ([line[key] for line in series_lines] for key in ("time_s", "num_waiting"))
            label = series(point, group.labels)
            found.append((order.index(label), f"{label} b{largest}", times, waiting))
    return plots.steps(name, sorted(found), "seconds") if found else None


def _of_group(frame: pd.DataFrame, group: Group, content: Content) -> dict[str, pd.DataFrame]:
    """Lines of a group's points that draft, by method."""
    names = {(p["label"], p["hash"]): series(p, group.labels) for p in group.done if not is_plain(p)}
    if not len(frame) or not names:
        return {}
    chosen = [names.get(key, "") for key in zip(frame["label"], frame["hash"], strict=True)]
    return {str(name): part for name, part in frame.groupby(chosen) if name}


def _by_position(content: Content, group: Group, name: str) -> str | None:
    order, found = methods(group), []
    for method, rounds in _of_group(content.rounds, group, content).items():
        accepted, drafted = rounds["num_accepted"].explode(), rounds["num_drafted"].explode()
        curve = Curve(order.index(method), method)
        for position in range(1, int(drafted.max() or 0) + 1):
            tried = drafted >= position
            curve.values[position] = (float((accepted[tried] >= position).mean()), None)
        if curve.values:
            found.append(curve)
    found.sort(key=lambda curve: curve.index)
    return plots.curves(name, found, ".1f", xlabel="drafted token", scale=100) if found else None


def _by_category(content: Content, group: Group, name: str) -> str | None:
    order, found, categories = methods(group), [], dict[str, int]()
    for method, samples in _of_group(content.samples, group, content).items():
        values = {}
        for category, part in samples.groupby("category"):
            accepted, drafted = part["accepted_lengths"].map(sum), part["num_drafted"]
            if drafted.sum():
                values[str(category)] = (float(accepted.sum() / drafted.sum()), of_ratio(accepted, drafted))
                categories[str(category)] = len(part)
        found.append((order.index(method), method, values))
    return plots.dots(name, sorted(categories), sorted(found)) if categories else None


_FIGURES: list[tuple[str, str, str, Callable[[Content, Group, str], str | None]]] = [
    (
        "throughput",
        "Throughput, tokens/s",
        "Output tokens per second of wall time. Dashed: plain decoding. Bands: 95% bootstrap over rounds.",
        _throughput,
    ),
    (
        "speedup",
        "Speed-up over plain decoding",
        "Against the baseline at the same batch size. Below the dashed line speculation costs more than it saves.",
        _speedup,
    ),
    (
        "scaling",
        "Scaling over the method's own batch 1",
        "How well a method uses a larger batch. It says nothing of which method is faster.",
        _scaling,
    ),
    (
        "overhead",
        "Alignment overhead, %",
        "Time spent realigning, as a share of the decode time.",
        _overhead,
    ),
    (
        "grouping",
        "Grouping rate, %",
        "Rounds whose rows all have one length: they need no realignment.",
        _grouping,
    ),
    (
        "by_position",
        "Accepted up to a position, %",
        "Of the drafts that reach the n-th token, how many are kept up to it, over all batch sizes.",
        _by_position,
    ),
    (
        "time_split",
        "Where the decode time goes",
        "The stages are exclusive and sum to the decode time, without prefill. Plain decoding verifies, and no more.",
        _time_split,
    ),
    (
        "latency",
        "Latency of a row, s",
        "From arrival to the last token. Filled: median; tick: 90th percentile; hollow: 99th.",
        _percentiles("latency_s", "seconds"),
    ),
    (
        "ttft",
        "Time to first token, s",
        "From arrival to the first token. Filled: median; tick: 90th percentile; hollow: 99th.",
        _percentiles("ttft_s", "seconds"),
    ),
    (
        "queue",
        "Requests waiting for admission",
        "Over the time of the run, at the largest batch size.",
        _queue,
    ),
    (
        "by_category",
        "Acceptance by category",
        "Accepted / drafted tokens, over all batch sizes. Lines: 95% bootstrap over prompts.",
        _by_category,
    ),
]
