"""The kinds of plot that a report needs: curves over the batch size, bars, stacked bars, percentiles, dots, steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from specdec.core.tables import Column, Interval
from specdec.report.svg import INK, MUTED, STAGES, Canvas, marker, series_colour, stage_colour

MAX_BANDS = 6  # of more curves the bands could not be told apart
_DASHED = (0, (4, 3))
Values = dict[float, tuple[float, Interval | None]]
"""Figures and their intervals over x."""


@dataclass(slots=True)
class MethodCurve:
    """A method's figures over x."""

    index: int  # of the method: colour and marker
    name: str
    values: Values = field(default_factory=dict)
    is_baseline: bool = False


def curves(
    found: Sequence[MethodCurve], column: Column, xlabel: str = "batch", reference: float | None = None
) -> Canvas:
    """Curves over batch sizes (a logarithmic axis); bars where there is only one batch size.

    Args:
        column: what is shown, and how it is written in a tooltip.
        reference: where a dashed line is drawn.
    """
    places = sorted({x for curve in found for x in curve.values})
    if len(places) == 1:
        return _bars(found, places[0], column, reference)
    canvas = Canvas()
    if reference is not None:
        canvas.axes.axhline(reference, color=MUTED, linewidth=1, linestyle=_DASHED)
    for at, curve in enumerate(found):
        num_below = sum(_coincide(curve, other) for other in found[:at])
        _curve(canvas, curve, column, xlabel, len(found) <= MAX_BANDS, num_below)
    canvas.notes += _notes(found, has_bands=len(found) <= MAX_BANDS)
    if xlabel == "batch":
        canvas.axes.set_xscale("log", base=2)
    canvas.axes.set_xticks(places, [f"{x:g}" for x in places])
    canvas.axes.minorticks_off()
    canvas.axes.set_xlabel(xlabel)
    canvas.axes.set_ylim(bottom=0)
    if "%" in column.pattern:
        canvas.axes.yaxis.set_major_formatter(_percent)
    return canvas


def _coincide(curve: MethodCurve, other: MethodCurve) -> bool:
    """Whether two curves have the same x, and less than 1% of the largest value between them."""
    if curve.values.keys() != other.values.keys():
        return False
    largest = max(max(abs(each.values[x][0]) for x in each.values) for each in (curve, other))
    return all(abs(curve.values[x][0] - other.values[x][0]) <= 0.01 * largest for x in curve.values)


def _notes(found: Sequence[MethodCurve], has_bands: bool) -> list[str]:
    """What the caption must say of these curves."""
    baselines = [curve.name for curve in found if curve.is_baseline]
    with_intervals = any(interval for curve in found for _, interval in curve.values.values())
    pairs = ((curve, other) for at, curve in enumerate(found) for other in found[:at] if _coincide(curve, other))
    twins = [f"{curve.name} on {other.name}" for curve, other in pairs]
    return [
        *(["Dashed: plain decoding."] if baselines else []),
        *(["Bands: 95% intervals."] if with_intervals and has_bands else []),
        *([f"Curves that coincide (larger hollow markers, gaps): {', '.join(twins)}."] if twins else []),
    ]


def _curve(canvas: Canvas, curve: MethodCurve, column: Column, xlabel: str, has_band: bool, num_below: int) -> None:
    """A curve; one that lies on others has gaps and larger, hollow markers, so that those are seen too."""
    xs = sorted(curve.values)
    gaps = (0, (2, 3 + 2 * num_below)) if num_below else "solid"
    line = (0, (4, 2)) if curve.is_baseline else gaps
    hollow = {"markerfacecolor": "none", "markersize": 5.5 + 4 * num_below} if num_below else {}
    canvas.plot(curve.index, "", xs, [curve.values[x][0] for x in xs], linestyle=line, zorder=3)
    ranges = [(x, *interval) for x in xs if (interval := curve.values[x][1])]
    if ranges and has_band:
        band = canvas.axes.fill_between(
            *zip(*ranges, strict=True), color=series_colour(curve.index), alpha=0.16, linewidth=0
        )
        canvas.tip(band, "", curve.index)
    for x in xs:
        tip = f"{curve.name}, {xlabel} {x:g}: {_written(column, *curve.values[x])}"
        canvas.plot(curve.index, tip, [x], [curve.values[x][0]], marker(curve.index), zorder=4, **hollow)


def _bars(found: Sequence[MethodCurve], x: float, column: Column, reference: float | None) -> Canvas:
    """A horizontal bar with its interval per method."""
    canvas = Canvas([curve.name for curve in found])
    for y, curve in enumerate(found):
        value, interval = curve.values[x]
        tip = f"{curve.name}: {_written(column, value, interval)}"
        (bar,) = canvas.axes.barh([y], [value], height=0.62, color=series_colour(curve.index), zorder=2)
        canvas.tip(bar, tip, curve.index)
        if interval:
            canvas.notes[:] = ["Lines: 95% intervals."]
            canvas.plot(curve.index, tip, interval, [y, y], color=INK, linewidth=1.2, zorder=3)
    if reference is not None:
        canvas.axes.axvline(reference, color=MUTED, linewidth=1, linestyle=_DASHED, zorder=4)
    canvas.axes.set_xlim(left=0)
    if "%" in column.pattern:
        canvas.axes.xaxis.set_major_formatter(_percent)
    return canvas


def stacked(rows: Sequence[tuple[int, str, dict[str, float]]]) -> Canvas:
    """Shares of the decode time, a row per point: (method, name, seconds by stage)."""
    canvas = Canvas([label for _, label, _ in rows])
    for y, (index, label, seconds) in enumerate(rows):
        whole, left = sum(seconds.values()) or 1.0, 0.0
        for stage in STAGES:
            share = seconds[stage] / whole
            (bar,) = canvas.axes.barh([y], [share], left=left, height=0.66, color=stage_colour(stage), zorder=2)
            canvas.tip(bar, f"{label}: {stage} {share:.1%} ({seconds[stage]:.3g} s)", index)
            left += share
    return _shares(canvas, "share of the decode time")


def percentiles(rows: Sequence[tuple[int, str, Sequence[float]]]) -> Canvas:
    """p50 (filled), p90 (a tick) and p99 (hollow), a row per point: (method, name, three values)."""
    canvas = Canvas([label for _, label, _ in rows])
    for y, (index, label, values) in enumerate(rows):
        tip = "{}: p50 {:.3g}, p90 {:.3g}, p99 {:.3g} s".format(label, *values)
        canvas.plot(index, tip, values, [y] * 3, linewidth=2.4, alpha=0.45, zorder=2)
        canvas.plot(index, tip, values[:1], [y], "o", zorder=3)
        canvas.plot(index, tip, values[1:2], [y], "|", markersize=9, markeredgewidth=2, zorder=3)
        canvas.plot(index, tip, values[2:], [y], "o", markerfacecolor="none", zorder=3)
    canvas.axes.set_xlim(left=0)
    canvas.axes.set_xlabel("seconds")
    return canvas


def dots(rows: Sequence[str], found: Sequence[MethodCurve], column: Column) -> Canvas:
    """A dot with its interval per row and method; a method's x is the row's number."""
    canvas = Canvas(rows, max(0.25, 0.085 * len(found)))
    for at, curve in enumerate(found):
        shift = (at - (len(found) - 1) / 2) * min(0.14, 0.6 / len(found))
        for y, (value, interval) in curve.values.items():
            tip = f"{curve.name}, {rows[int(y)]}: {_written(column, value, interval)}"
            if interval:
                canvas.plot(curve.index, tip, interval, [y + shift] * 2, linewidth=1.2, zorder=2)
            canvas.plot(curve.index, tip, [value], [y + shift], marker(curve.index), zorder=3)
    return _shares(canvas, "accepted / drafted")


def steps(found: Sequence[tuple[int, str, Sequence[float], Sequence[float]]]) -> Canvas:
    """Step curves: (method, name, times, values)."""
    canvas = Canvas()
    for index, label, times, values in found:
        tip = f"{label}: {max(values):g} at most"
        canvas.plot(index, tip, times, values, drawstyle="steps-post", linewidth=1.4)
    canvas.axes.set_xlabel("seconds")
    canvas.axes.set_ylim(bottom=0)
    return canvas


def _shares(canvas: Canvas, xlabel: str) -> Canvas:
    canvas.axes.set_xlim(0, 1)
    canvas.axes.xaxis.set_major_formatter(_percent)
    canvas.axes.set_xlabel(xlabel)
    return canvas


def _percent(value: float, position: int) -> str:
    return f"{100 * value:g}%"


def _written(column: Column, value: float, interval: Interval | None) -> str:
    cell = column.cell({column.key: value}, interval)
    return f"{cell.text} {cell.spread}".strip()
