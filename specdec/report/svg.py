"""A matplotlib canvas whose SVG takes its colours from the page, so that it follows light and dark, with tips to hover.

Matplotlib draws with placeholder colours, which become CSS variables, and groups that carry a name become groups with
a class and a tip. Nothing else of matplotlib's output is changed.
"""

from __future__ import annotations

import html
import io
import re
from typing import Any

from specdec.analysis import require

NUM_COLOURS = 8
STAGES = ("draft", "verify", "align", "schedule", "other")
INK, MUTED, GRID = "#01ee01", "#01ee02", "#01ee03"
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"}
_VARIABLES |= {f"#5e51{n:02x}": f"var(--s{n})" for n in range(NUM_COLOURS)}
_VARIABLES |= {f"#5a61{n:02x}": f"var(--t{n})" for n in range(len(STAGES))}
_MARKERS = "osD^vPXp"
_WIDTH_IN = 5.4  # at 72 points per inch: about the width of a card, so that text keeps its size


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
    """One figure with one pair of axes. Use it, then take :meth:`svg`."""

    def __init__(self, name: str, height_in: float = 3.5) -> None:
        matplotlib = require("matplotlib")
        self._style = matplotlib.rc_context(_STYLE | {"svg.hashsalt": name})
        self._tips: dict[str, tuple[str, str]] = {}
        with self._style:
            self.figure = require("matplotlib.figure").Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
            self.axes = self.figure.subplots()
            for side in ("top", "right"):
                self.axes.spines[side].set_visible(False)

    def tip(self, artist: Any, text: str, index: int | None = None) -> None:
        """Show ``text`` when the artist is pointed at; ``index`` is the method it belongs to."""
        gid = f"tip.{len(self._tips)}"
        artist.set_gid(gid)
        self._tips[gid] = ("" if index is None else f"s{index}", text)

    def svg(self) -> str:
        """The figure as an ``<svg>`` element to put into a page."""
        stream = io.StringIO()
        with require("matplotlib").rc_context(_STYLE | {"svg.hashsalt": str(self._tips)}):
            self.figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        text = stream.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", text)
        text = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", text)
        text = re.sub(r'<g id="(tip\.\d+)">', self._open, text)
        text = re.sub(
            r' id="(?:figure|axes|patch|line2d|text|matplotlib\.\w+|xtick|ytick|\w+Collection)_\d+"', "", text
        )
        return re.sub("|".join(_VARIABLES), lambda found: _VARIABLES[found[0]], text).strip()

    def _open(self, found: re.Match[str]) -> str:
        css, text = self._tips[found[1]]
        shown = f' data-tip="{html.escape(text)}"' if text else ""
        return f'<g class="{css}"{shown}>'


_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 11,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
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
