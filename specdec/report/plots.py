"""The few kinds of plot that a report needs: curves over the batch size, bars, stacked bars, ranges, dots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from specdec.report.intervals import Interval
from specdec.report.svg import GRID, INK, MUTED, STAGES, Canvas, marker, series_colour, stage_colour

MAX_BANDS = 6  # of more curves the bands could not be told apart
ROW_IN, MARGIN_IN = 0.25, 0.66  # height of a row of bars, and of the axis below them


@dataclass(slots=True)
class Curve:
    """A method's values over x."""

    index: int  # of the method: colour and marker
    name: str
    values: dict[float, tuple[float, Interval | None]] = field(default_factory=dict)
    dashed: bool = False  # plain decoding: what the others are held against


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of a bar plot."""

    index: int
    name: str
    value: float
    interval: Interval | None = None


def curves(
    name: str, found: Sequence[Curve], pattern: str, *, xlabel: str = "batch", at_one: bool = False, scale: float = 1
) -> str:
    """Curves over batch sizes (a logarithmic axis); bars where there is only one batch size.

    Args:
        pattern: how a value is written in a tip.
        at_one: draw a line at 1.
        scale: what values are multiplied with.
    """
    places = sorted({x for curve in found for x in curve.values})
    if len(places) == 1:
        return bars(name, [Bar(c.index, c.name, *c.values[places[0]]) for c in found], pattern, at_one, scale)
    canvas = Canvas(name)
    axes = canvas.axes
    if at_one:
        axes.axhline(scale, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    for curve in found:
        _curve(canvas, curve, pattern, xlabel, scale, has_band=len(found) <= MAX_BANDS)
    if xlabel == "batch":
        axes.set_xscale("log", base=2)
    axes.set_xticks(places, [f"{x:g}" for x in places])
    axes.minorticks_off()
    axes.set_xlabel(xlabel)
    axes.set_ylim(bottom=0)
    return canvas.svg()


def _curve(canvas: Canvas, curve: Curve, pattern: str, xlabel: str, scale: float, has_band: bool) -> None:
    colour = series_colour(curve.index)
    xs = sorted(curve.values)
    ys = [curve.values[x][0] * scale for x in xs]
    style = (0, (4, 2)) if curve.dashed else "solid"
    (line,) = canvas.axes.plot(xs, ys, color=colour, linestyle=style, zorder=3)
    canvas.tip(line, "", curve.index)
    ranges = {x: interval for x, (_, interval) in curve.values.items() if interval}
    if ranges and has_band:
        low, high = ([ranges[x][end] * scale for x in sorted(ranges)] for end in (0, 1))
        band = canvas.axes.fill_between(sorted(ranges), low, high, color=colour, alpha=0.16, linewidth=0)
        canvas.tip(band, "", curve.index)
    for x, y in zip(xs, ys, strict=True):
        (dot,) = canvas.axes.plot([x], [y], marker(curve.index), color=colour, zorder=4)
        text = f"{curve.name}, {xlabel} {x:g}: {_written(y, ranges.get(x), pattern, scale)}"
        canvas.tip(dot, text, curve.index)


def bars(name: str, rows: Sequence[Bar], pattern: str, at_one: bool = False, scale: float = 1) -> str:
    """Horizontal bars with their intervals, one row each."""
    canvas = _rows(name, [row.name for row in rows])
    for y, row in enumerate(rows):
        patches = canvas.axes.barh([y], [row.value * scale], height=0.62, color=series_colour(row.index), zorder=2)
        text = f"{row.name}: {_written(row.value * scale, row.interval, pattern, scale)}"
        canvas.tip(patches[0], text, row.index)
        if row.interval:
            ends = [end * scale for end in row.interval]
            (line,) = canvas.axes.plot(ends, [y, y], color=INK, linewidth=1.2, zorder=3)
            canvas.tip(line, text, row.index)
    if at_one:
        canvas.axes.axvline(scale, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=4)
    canvas.axes.set_xlim(left=0)
    return canvas.svg()


def stacked(name: str, rows: Sequence[tuple[int, str, dict[str, float]]]) -> str:
    """Shares of the decode time in percent, a row per point: (method, name, seconds by stage)."""
    canvas = _rows(name, [label for _, label, _ in rows])
    for y, (index, label, seconds) in enumerate(rows):
        whole, left = sum(seconds.values()) or 1.0, 0.0
        for stage in STAGES:
            share = 100 * seconds.get(stage, 0.0) / whole
            patches = canvas.axes.barh([y], [share], left=left, height=0.66, color=stage_colour(stage), zorder=2)
            canvas.tip(patches[0], f"{label}: {stage} {share:.1f}% ({seconds.get(stage, 0.0):.3g} s)", index)
            left += share
    canvas.axes.set_xlim(0, 100)
    canvas.axes.set_xlabel("share of the decode time, %")
    return canvas.svg()


def ranges(name: str, rows: Sequence[tuple[int, str, Sequence[float]]], xlabel: str) -> str:
    """From p50 (filled) over p90 (a tick) to p99 (hollow), a row per point: (method, name, three values)."""
    canvas = _rows(name, [label for _, label, _ in rows])
    for y, (index, label, values) in enumerate(rows):
        colour = series_colour(index)
        text = f"{label}: p50 {values[0]:.3g}, p90 {values[1]:.3g}, p99 {values[2]:.3g} s"
        drawn: list[Any] = canvas.axes.plot(values, [y] * 3, color=colour, linewidth=2.4, alpha=0.45, zorder=2)
        drawn += canvas.axes.plot(values[:1], [y], "o", color=colour, zorder=3)
        drawn += canvas.axes.plot(values[1:2], [y], "|", color=colour, markersize=9, markeredgewidth=2, zorder=3)
        drawn += canvas.axes.plot(values[2:], [y], "o", color=colour, markerfacecolor="none", zorder=3)
        for artist in drawn:
            canvas.tip(artist, text, index)
    canvas.axes.set_xlim(left=0)
    canvas.axes.set_xlabel(xlabel)
    return canvas.svg()


def dots(
    name: str, names: Sequence[str], found: Iterable[tuple[int, str, dict[str, tuple[float, Interval | None]]]]
) -> str:
    """A row per name, and on it a dot with its interval per method: (method, its name, values by row), in percent."""
    methods = list(found)
    canvas = _rows(name, names, max(ROW_IN, 0.085 * len(methods)))
    for at, (index, method, values) in enumerate(methods):
        shift = (at - (len(methods) - 1) / 2) * min(0.14, 0.6 / len(methods))
        for y, row in enumerate(names):
            if row not in values:
                continue
            value, interval = values[row]
            text = f"{method}, {row}: {_written(100 * value, interval, '.1f', 100)}%"
            if interval:
                ends = [100 * end for end in interval]
                (line,) = canvas.axes.plot(ends, [y + shift] * 2, color=series_colour(index), linewidth=1.2, zorder=2)
                canvas.tip(line, text, index)
            (dot,) = canvas.axes.plot([100 * value], [y + shift], marker(index), color=series_colour(index), zorder=3)
            canvas.tip(dot, text, index)
    canvas.axes.set_xlim(0, 100)
    canvas.axes.set_xlabel("accepted, % of drafted")
    return canvas.svg()


def steps(name: str, found: Sequence[tuple[int, str, Sequence[float], Sequence[float]]], xlabel: str) -> str:
    """Step curves: (method, its name, times, values)."""
    canvas = Canvas(name)
    for index, label, times, values in found:
        (line,) = canvas.axes.step(times, values, where="post", color=series_colour(index), linewidth=1.4)
        canvas.tip(line, f"{label}: {max(values):g} at most", index)
    canvas.axes.set_xlabel(xlabel)
    canvas.axes.set_ylim(bottom=0)
    return canvas.svg()


def _rows(name: str, names: Sequence[str], row_in: float = ROW_IN) -> Canvas:
    """Axes with one named row per entry, the first on top."""
    canvas = Canvas(name, MARGIN_IN + row_in * max(len(names), 3))
    canvas.axes.set_yticks(range(len(names)), names)
    canvas.axes.set_ylim(max(len(names), 3) - 0.5, -0.5)
    canvas.axes.tick_params(axis="y", length=0)
    canvas.axes.grid(visible=False, axis="y")
    canvas.axes.grid(visible=True, axis="x", color=GRID)
    canvas.axes.spines["left"].set_visible(False)
    return canvas


def _written(value: float, interval: Interval | None, pattern: str, scale: float) -> str:
    spread = f" [{interval[0] * scale:{pattern}}, {interval[1] * scale:{pattern}}]" if interval else ""
    return f"{value:{pattern}}{spread}"
