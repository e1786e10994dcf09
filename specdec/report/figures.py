"""Which plots a group of points gets, and the numbers that they show."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from specdec.analysis import Record, is_plain, per_round
from specdec.core.columns import COLUMNS
from specdec.core.files import read_lines
from specdec.core.tables import Column
from specdec.report import plots
from specdec.report.content import Group, ReportContent
from specdec.report.intervals import of_ratio
from specdec.report.plots import MethodCurve
from specdec.report.svg import STAGES, Canvas

_ACCEPTED = Column("accepted", "accepted", ".1%", "accepted / drafted tokens")
_REJECTED = Column("rejected", "rejected", ".1%", "first rejections / drafts")
MAX_ROWS = 60  # of a plot with a row per point; more cannot be read
Draw = Callable[[ReportContent, Group], Canvas | None]
_FIGURES: list[tuple[str, str, str, Draw]] = []


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot with what it shows and how to read it."""

    name: str
    title: str
    caption: str
    svg: str


def figures(content: ReportContent, group: Group) -> list[Figure]:
    """All plots of a group that its points have the numbers for."""
    drawn = ((name, title, caption, draw(content, group)) for name, title, caption, draw in _FIGURES)
    return [
        Figure(name, title, " ".join([caption, *canvas.notes]), canvas.svg())
        for name, title, caption, canvas in drawn
        if canvas
    ]


def _figure(name: str, title: str, caption: str) -> Callable[[Draw], Draw]:
    def add(draw: Draw) -> Draw:
        _FIGURES.append((name, title, caption, draw))
        return draw

    return add


def _curves(content: ReportContent, group: Group, key: str, points: Iterable[Record]) -> list[MethodCurve]:
    """A figure of the summary over the batch size, per method."""
    found: dict[str, MethodCurve] = {}
    slots, order = group.slots, group.methods
    for point in points:
        if point.get(key) is not None:
            name = group.series(point)
            new = MethodCurve(slots[name], name, is_baseline=is_plain(point))
            found.setdefault(name, new).values[point["batch"]] = (point[key], content.interval(point, key))
    return sorted(found.values(), key=lambda curve: order.index(curve.name))


def _rows(group: Group) -> list[tuple[int, str, Record]]:
    """A row per finished point, method by method, with its name."""
    order, slots = group.methods, group.slots
    named = sorted((order.index(group.series(p)), p["batch"], at) for at, p in enumerate(group.done))
    first = {name.partition(" ")[0] for name in order}
    short = [name.partition(" ")[2] or name if len(first) == 1 else name for name in order]
    return [(slots[order[index]], f"{short[index]} b{batch}", group.done[at]) for index, batch, at in named][:MAX_ROWS]


@_figure(
    "throughput",
    "Throughput, tokens/s",
    "Output tokens per second of wall time.",
)
def _throughput(content: ReportContent, group: Group) -> Canvas | None:
    found = _curves(content, group, "tokens_per_s", group.done)
    return plots.curves(found, COLUMNS["tokens_per_s"]) if found else None


@_figure(
    "speedup",
    "Speed-up over plain decoding",
    "Against the baseline at the same batch size. Below 1, the dashed line, speculation costs more than it saves.",
)
def _speedup(content: ReportContent, group: Group) -> Canvas | None:
    shown = [point for point in group.done if not is_plain(point) or point.get("speedup_vs_ar") not in (None, 1.0)]
    found = _curves(content, group, "speedup_vs_ar", shown)
    return plots.curves(found, COLUMNS["speedup_vs_ar"], reference=1) if found else None


@_figure(
    "scaling",
    "Scaling over the method's own batch 1",
    "How well a method uses a larger batch. It does not say which method is faster.",
)
def _scaling(content: ReportContent, group: Group) -> Canvas | None:
    found = _curves(content, group, "tokens_per_s", group.done)
    found = [curve for curve in found if 1 in curve.values and len(curve.values) > 1]
    for curve in found:
        alone = curve.values[1][0]
        curve.values = {x: (value / alone, None) for x, (value, _) in curve.values.items()}
    return plots.curves(found, COLUMNS["speedup_vs_own_batch_1"], reference=1) if found else None


@_figure("overhead", "Alignment overhead", "Time spent realigning, as a share of the decode time.")
def _overhead(content: ReportContent, group: Group) -> Canvas | None:
    return _of_drafting(content, group, "alignment_overhead")


@_figure("grouping", "Grouping rate", "Rounds whose rows all have one length: they need no realignment.")
def _grouping(content: ReportContent, group: Group) -> Canvas | None:
    return _of_drafting(content, group, "grouping_rate")


def _of_drafting(content: ReportContent, group: Group, key: str) -> Canvas | None:
    found = _curves(content, group, key, (point for point in group.done if not is_plain(point)))
    return plots.curves(found, COLUMNS[key]) if found else None


@_figure(
    "by_position",
    "Accepted up to a position",
    "Of the drafts that reach the n-th token, how many are kept up to it, over all batch sizes.",
)
def _by_position(content: ReportContent, group: Group) -> Canvas | None:
    found, all_rounds = [], group.rows_of(content.rounds)
    for method, index in ((name, group.slots[name]) for name in group.methods):
        rounds = all_rounds[all_rounds["series"] == method]
        accepted, depths = rounds["num_accepted"].explode(), per_round(rounds, "depth").explode()
        places = range(1, int(depths.max() or 0) + 1) if len(depths) else ()
        values: plots.Values = {n: (float((accepted[depths >= n] >= n).mean()), None) for n in places}
        found += [MethodCurve(index, method, values)] if values else []
    return plots.curves(found, _ACCEPTED, "drafted token") if found else None


@_figure(
    "first_rejections",
    "First rejection",
    "Share of the drafts whose first rejected token is the n-th, over all batch sizes; the rest were accepted whole.",
)
def _first_rejections(content: ReportContent, group: Group) -> Canvas | None:
    found, all_rounds = [], group.rows_of(content.rounds)
    for method, index in ((name, group.slots[name]) for name in group.methods):
        rounds = all_rounds[all_rounds["series"] == method]
        accepted, depths = rounds["num_accepted"].explode(), per_round(rounds, "depth").explode()
        accepted, depths = accepted[depths > 0], depths[depths > 0]
        first = accepted[accepted < depths] + 1
        longest = int(depths.max()) if len(depths) else 0
        values: plots.Values = {n: (float((first == n).sum() / len(depths)), None) for n in range(1, longest + 1)}
        found += [MethodCurve(index, method, values)] if values else []
    return plots.curves(found, _REJECTED, "drafted token") if found else None


@_figure(
    "time_split",
    "Where the decode time goes",
    "The stages are exclusive and sum to the decode time, without prefill. Plain decoding only verifies.",
)
def _time_split(content: ReportContent, group: Group) -> Canvas | None:
    rows = [
        (index, label, {stage: point.get(f"{stage}_s") or 0.0 for stage in STAGES})
        for index, label, point in _rows(group)
        if point.get("decode_s") and not is_plain(point)
    ]
    return plots.stacked(rows) if rows else None


_PERCENTILES = "Filled: median; tick: 90th percentile; hollow: 99th."


@_figure("latency", "Latency of a row, s", f"From arrival to the last token. {_PERCENTILES}")
def _latency(content: ReportContent, group: Group) -> Canvas | None:
    return _percentiles(group, "latency_s")


@_figure("ttft", "Time to first token, s", f"From arrival to the first token. {_PERCENTILES}")
def _ttft(content: ReportContent, group: Group) -> Canvas | None:
    return _percentiles(group, "ttft_s")


def _percentiles(group: Group, key: str) -> Canvas | None:
    rows = [(index, label, [point.get(f"{key}.p{p}") for p in (50, 90, 99)]) for index, label, point in _rows(group)]
    known = [(index, label, [v for v in values if v is not None]) for index, label, values in rows]
    known = [row for row in known if len(row[2]) == 3]
    return plots.percentiles(known) if known else None


@_figure("queue", "Requests waiting for admission", "Over the time of the run, at the largest batch size.")
def _queue(content: ReportContent, group: Group) -> Canvas | None:
    largest = max((point["batch"] for point in group.done), default=0)
    found = []
    for point in group.done:
        lines = list(read_lines(Path(point["folder"]) / "queue.jsonl")) if point["batch"] == largest else []
        if lines:
            name = group.series(point)
            times, waiting = ([line[key] for line in lines] for key in ("time_s", "num_waiting"))
            found.append((group.slots[name], f"{name} b{largest}", times, waiting))
    return plots.steps(sorted(found)) if found else None


@_figure(
    "by_category",
    "Acceptance by category",
    "Accepted / drafted tokens, over all batch sizes. Lines: 95% bootstrap over prompts.",
)
def _by_category(content: ReportContent, group: Group) -> Canvas | None:
    samples, found = group.rows_of(content.samples), []
    categories = sorted(samples["category"].unique()) if len(samples) else []
    for method, index in ((name, group.slots[name]) for name in group.methods):
        curve = MethodCurve(index, method)
        for y, category in enumerate(categories):
            part = samples[(samples["series"] == method) & (samples["category"] == category)]
            accepted, drafted = part["accepted_lengths"].map(sum), part["num_drafted"]
            if drafted.sum():
                curve.values[y] = (float(accepted.sum() / drafted.sum()), of_ratio(accepted, drafted))
        found += [curve] if curve.values else []
    return plots.dots(categories, found, _ACCEPTED) if found else None
