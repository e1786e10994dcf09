"""A matplotlib figure whose SVG takes its colours from the page, so that it follows light and dark, with tooltips.

Matplotlib draws with placeholder colours, which become CSS variables, and the groups of artists that have a tooltip get
it as an attribute. Nothing else of matplotlib's output is changed.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from typing import Any

from specdec.analysis import require

NUM_COLOURS = 8
STAGES = ("draft", "verify", "align", "schedule", "other")
INK, MUTED, GRID = "#01ee01", "#01ee02", "#01ee03"
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"}
_VARIABLES |= {f"#5e51{n:02x}": f"var(--s{n})" for n in range(NUM_COLOURS)}
_VARIABLES |= {f"#5a61{n:02x}": f"var(--t{n})" for n in range(len(STAGES))}
_MARKERS = "osD^vPXp"
_WIDTH_IN, _HEIGHT_IN = 5.4, 3.5  # at 72 points per inch: about the width of a card, so that text keeps its size
_ROW_IN, _MARGIN_IN = 0.25, 0.66  # height of a named row, and of the axis below the rows
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 11,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
}


def series_colour(index: int) -> str:
    """Placeholder of a method's colour."""
    return f"#5e51{index % NUM_COLOURS:02x}"


def stage_colour(stage: str) -> str:
    """Placeholder of a stage's colour."""
    return f"#5a61{STAGES.index(stage):02x}"


def marker(index: int) -> str:
    """A method's marker; it differs where colours repeat."""
    return _MARKERS[(index + index // NUM_COLOURS) % len(_MARKERS)]


class Canvas:
    """One figure with one pair of axes. Draw on ``axes``, then take :meth:`svg`.

    Args:
        rows: names of rows, the first on top, in place of a numeric y axis.
        row_in: height of a row in inches.
    """

    def __init__(self, rows: Sequence[str] | None = None, row_in: float = _ROW_IN) -> None:
        self._tips: list[tuple[str, str]] = []
        self.notes: list[str] = []  # for the caption: what the drawing turned out to have
        num_rows = max(len(rows or ()), 3)
        size = (_WIDTH_IN, _HEIGHT_IN if rows is None else _MARGIN_IN + row_in * num_rows)
        with require("matplotlib").rc_context(_STYLE):
            self.figure = require("matplotlib.figure").Figure(figsize=size, layout="constrained")
            self.axes = self.figure.subplots()
        if rows is not None:
            self.axes.set_yticks(range(len(rows)), rows)
            self.axes.set_ylim(num_rows - 0.5, -0.5)
            self.axes.tick_params(axis="y", length=0)
            self.axes.grid(visible=False, axis="y")
            self.axes.spines["left"].set_visible(False)

    def plot(
        self, index: int, tip: str, xs: Sequence[float], ys: Sequence[float], form: str = "", **style: Any
    ) -> None:
        """A line or markers in a method's colour."""
        self.tip(self.axes.plot(xs, ys, *form, **{"color": series_colour(index), **style})[0], tip, index)

    def tip(self, artist: Any, text: str, index: int) -> None:
        """Show ``text``, if any, when the artist is pointed at; ``index`` is the method it belongs to."""
        artist.set_gid(f"tip.{len(self._tips)}")
        shown = f' data-tip="{html.escape(text)}"' if text else ""
        self._tips.append((f"s{index}", shown))

    def svg(self) -> str:
        """The figure as an ``<svg>`` element to put into a page."""
        stream = io.StringIO()
        # Ids of clip paths must differ between the figures of a page and repeat between two runs.
        with require("matplotlib").rc_context(_STYLE | {"svg.hashsalt": str(self._tips)}):
            nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            self.figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
        text = stream.getvalue()
        text = re.sub(r'<g id="tip\.(\d+)">', lambda found: '<g class="{}"{}>'.format(*self._tips[int(found[1])]), text)
        text = re.sub(r' id="[\w.]+_\d+"', "", text)  # the same in every figure
        return re.sub("|".join(_VARIABLES), lambda found: _VARIABLES[found[0]], text[text.index("<svg") :]).strip()
