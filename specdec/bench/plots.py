"""Throughput, and where the time goes, against the batch size: one picture each per study, pair and context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specdec.bench.run import DONE
from specdec.bench.tables import blocks, heading

_STAGES = {"prefill": "#bab0ac", "draft": "#f28e2b", "verify": "#4e79a7", "align": "#e15759", "other": "#76b7b2"}


def draw(document: dict[str, Any], folder: Path) -> list[Path]:
    """Write the pictures as SVG; returns their paths. Empty where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "specdec"  # the same figures give the same file
    from matplotlib import pyplot

    paths = []
    for (study, pair, context), entries in blocks(document):
        done = [entry for entry in entries if entry["status"] == DONE]
        if not done:
            continue
        name = f"{study}-{pair}" + (f"-{context}" if context is not None else "")
        title = heading(document, study, pair, context)
        for kind, plot in (("throughput", _throughput), ("time", _time_split)):
            figure = plot(pyplot, done, title)
            if figure is None:
                continue
            path = folder / f"{name}-{kind}.svg"
            figure.savefig(path, metadata={"Date": None})
            pyplot.close(figure)
            paths.append(path)
    return paths


def _throughput(pyplot: Any, entries: list[dict[str, Any]], title: str) -> Any:
    """Tokens per second with intervals, one line per method."""
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for number, method in enumerate(dict.fromkeys(entry["method"] for entry in entries)):
        own = [entry for entry in entries if entry["method"] == method]
        rates = [entry["tokens_per_s"] for entry in own]
        below = [rate["value"] - rate["low"] for rate in rates]
        above = [rate["high"] - rate["value"] for rate in rates]
        axes.errorbar(
            [entry["batch"] for entry in own],
            [rate["value"] for rate in rates],
            yerr=[below, above],
            marker="osv^Dx"[number % 6],
            linestyle=("-", "--", ":")[number // 10 % 3],
            capsize=2,
            label=method,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set(xlabel="batch size", ylabel="tokens/s", title=title)
    batches = sorted({entry["batch"] for entry in entries})
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _time_split(pyplot: Any, entries: list[dict[str, Any]], title: str) -> Any:
    """Shares of the stages, one bar per method and batch size; None where no method tells its stages."""
    own = [entry for entry in entries if entry.get("verify_s") is not None]
    if not own:
        return None
    figure, axes = pyplot.subplots(figsize=(8, 1.5 + 0.25 * len(own)), layout="constrained")
    labels = [f"{entry['method']}, batch {entry['batch']}" for entry in own]
    left = [0.0] * len(own)
    for stage, color in _STAGES.items():
        stages = ("other", "schedule") if stage == "other" else (stage,)
        seconds = [sum(entry[f"{part}_s"]["value"] for part in stages) for entry in own]
        shares = [100 * s / entry["wall_s"]["value"] for s, entry in zip(seconds, own, strict=True)]
        axes.barh(labels, shares, left=left, color=color, label=stage)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="% of the time", title=title)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
