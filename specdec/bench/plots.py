"""Throughput, and where the time goes, against the batch size: one picture each per study, pair and context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specdec.analysis import require
from specdec.bench.suite import DONE
from specdec.bench.tables import Entry, blocks, heading

_STAGES = {"prefill": "#bab0ac", "draft": "#f28e2b", "verify": "#4e79a7", "align": "#e15759", "other": "#76b7b2"}
_STYLE = {"svg.hashsalt": "specdec", "figure.constrained_layout.use": True, "legend.fontsize": "small"}
_BESIDE = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}


def write_plots(document: dict[str, Any], folder: Path) -> list[Path]:
    """Write the pictures as SVG; returns their paths."""
    new_figure = require("matplotlib.figure").Figure
    paths = []
    with require("matplotlib").rc_context(_STYLE):
        for key, entries in blocks(document):
            done = [entry for entry in entries if entry["status"] == DONE]
            staged = [entry for entry in done if entry.get("verify_s") is not None]
            for kind, shown, height, plot in (
                ("throughput", done, 5.0, _throughput),
                ("time", staged, 1.5 + 0.25 * len(staged), _time_split),
            ):
                if shown:
                    figure = new_figure(figsize=(8, height))
                    axes = figure.subplots()
                    axes.set_title(heading(document, *key))
                    plot(axes, shown)
                    axes.legend(**_BESIDE)
                    paths.append(folder / f"{'-'.join(str(part) for part in key if part is not None)}-{kind}.svg")
                    figure.savefig(paths[-1], metadata={"Date": None})
    return paths


def _throughput(axes: Any, entries: list[Entry]) -> None:
    """Tokens per second with intervals, one line per method."""
    for number, method in enumerate(dict.fromkeys(entry["method"] for entry in entries)):
        own = {e["batch"]: e["tokens_per_s"] for e in entries if e["method"] == method}
        axes.errorbar(
            own.keys(),
            [rate["value"] for rate in own.values()],
            yerr=list(zip(*((r["value"] - r["low"], r["high"] - r["value"]) for r in own.values()), strict=True)),
            marker="osv^Dx"[number % 6],
            linestyle=("-", "--", ":")[number // 10 % 3],
            capsize=2,
            label=method,
        )
    axes.set(xlabel="batch size", ylabel="tokens/s", yscale="log")
    axes.set_xscale("log", base=2)
    batches = sorted({entry["batch"] for entry in entries})
    axes.set_xticks(batches, [str(batch) for batch in batches])


def _time_split(axes: Any, entries: list[Entry]) -> None:
    """Shares of the stages, one bar per method and batch size."""
    labels = [f"{entry['method']}, batch {entry['batch']}" for entry in entries]
    left = [0.0] * len(entries)
    for stage, colour in _STAGES.items():
        parts = ("other_s", "schedule_s") if stage == "other" else (f"{stage}_s",)
        shares = [100 * sum(e[part]["value"] for part in parts) / e["wall_s"]["value"] for e in entries]
        axes.barh(labels, shares, left=left, color=colour, label=stage)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("% of the time")
