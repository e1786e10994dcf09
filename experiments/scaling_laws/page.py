"""The page of the study: fits, their errors, pictures, and what of the published laws they support."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fits import LogLine, best_draft_length, fit_log_line

from specdec.core.tables import markdown, text_table

BASE = {"layers": 2, "width": 192, "loss": "forward_kl", "seed": 1}


def select(points: list[dict[str, Any]], **fixed: Any) -> list[dict[str, Any]]:
    """Points with these settings, by tokens."""
    chosen = [p for p in points if all(p[key] == value for key, value in fixed.items())]
    return sorted(chosen, key=lambda p: p["tokens"])


def length(point: dict[str, Any]) -> float:
    """Mean acceptance length."""
    return float(point["acceptance"]["mean_acceptance_length"])


def token_fits(points: list[dict[str, Any]]) -> dict[str, LogLine]:
    """One line per run: acceptance length against training tokens."""
    runs = {(p["layers"], p["width"], p["loss"], p["seed"]) for p in points}
    fits = {}
    for layers, width, loss, seed in sorted(runs):
        own = select(points, layers=layers, width=width, loss=loss, seed=seed)
        name = f"{layers} x {width}, {loss}, seed {seed}"
        fits[name] = fit_log_line([p["tokens"] for p in own], [length(p) for p in own])
    return fits


def last_points(points: list[dict[str, Any]], **fixed: Any) -> list[dict[str, Any]]:
    """The point with the most tokens of every run with these settings."""
    last: dict[tuple[Any, ...], dict[str, Any]] = {}
    for point in select(points, **fixed):
        last[(point["layers"], point["width"], point["loss"], point["seed"])] = point
    return list(last.values())


def size_fit(points: list[dict[str, Any]]) -> LogLine | None:
    """Acceptance length against the parameters after the embedding, at the most tokens; None with too few sizes."""
    sizes = last_points(points, loss="forward_kl", seed=1)
    if len({p["inner_parameters"] for p in sizes}) < 2:
        return None
    return fit_log_line([p["inner_parameters"] for p in sizes], [length(p) for p in sizes])


def optima(
    points: list[dict[str, Any]], verify_s: dict[str, dict[str, float]], draft_step_s: dict[str, dict[str, float]]
) -> list[dict[str, Any]]:
    """The best draft and draft length at each batch size, from measured times."""
    rows = []
    for batch, times in sorted(verify_s.items(), key=lambda item: int(item[0])):
        found = [{"batch": int(batch), "draft": "none", "gamma": 0, "speed": 1.0}]
        for p in last_points(points, loss="forward_kl", seed=1):
            rates = p["acceptance"]["acceptance_by_place"]
            shape = f"{p['layers']} x {p['width']}"
            gamma, speed = best_draft_length(rates, draft_step_s[shape][batch], lambda n, t=times: t[str(n)])
            found.append({"batch": int(batch), "draft": shape, "gamma": gamma, "speed": speed})
        rows.append(max(found, key=lambda row: row["speed"]))
    return rows


def write_page(out: Path, points: list[dict[str, Any]], prepared: dict[str, Any]) -> None:
    """results.json, pictures and results.md."""
    prepared = json.loads(json.dumps(prepared))  # keys as they are when read back
    points = json.loads(json.dumps(points))
    out.mkdir(parents=True, exist_ok=True)
    tokens, size = token_fits(points), size_fit(points)
    best = optima(points, prepared["verify_s"], prepared["draft_step_s"])
    (out / "results.json").write_text(json.dumps({"points": points, **prepared}, indent=1) + "\n")
    pictures(out / "pictures", points, tokens, size)
    (out / "results.md").write_text(_text(points, tokens, size, best))


def pictures(folder: Path, points: list[dict[str, Any]], tokens: dict[str, LogLine], size: LogLine | None) -> None:
    """Acceptance against tokens and size, points and lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    folder.mkdir(exist_ok=True)
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4))
    for name, line in tokens.items():
        layers, width, loss, seed = _parts(name)
        own = select(points, layers=layers, width=width, loss=loss, seed=seed)
        xs = [p["tokens"] for p in own]
        drawn = axes[0].plot(xs, [length(p) for p in own], "o", markersize=3, label=name)[0]
        axes[0].plot(xs, line(xs), color=drawn.get_color(), linewidth=1)
    axes[0].set(xscale="log", xlabel="training tokens", ylabel="mean acceptance length")
    axes[0].xaxis.set_minor_formatter(NullFormatter())  # over one or two decades their labels would overlap
    axes[0].legend(fontsize=6)
    sizes = last_points(points, loss="forward_kl", seed=1)
    axes[1].plot([p["inner_parameters"] for p in sizes], [length(p) for p in sizes], "o")
    if size is not None:
        xs = sorted(p["inner_parameters"] for p in sizes)
        axes[1].plot(xs, size(xs))
    axes[1].set(xscale="log", xlabel="parameters after the embedding", ylabel="mean acceptance length")
    figure.tight_layout()
    figure.savefig(folder / "laws.svg")
    pyplot.close(figure)


def _parts(name: str) -> tuple[int, int, str, int]:
    shape, loss, seed = name.split(", ")
    layers, width = shape.split(" x ")
    return int(layers), int(width), loss, int(seed.removeprefix("seed "))


def _fits(lines: dict[str, LogLine]) -> str:
    rows = []
    for name, line in lines.items():
        miss = "-" if line.largest_predicted is None else f"{line.largest_predicted - line.largest_y:+.3f}"
        left_out = "-" if line.left_out_rmse is None else f"{line.left_out_rmse:.3f}"
        fit = [f"{line.a:.2f}", f"{line.b:.3f}", f"{line.r_squared:.3f}"]
        rows.append([name, str(line.num_points), *fit, left_out, miss])
    return markdown(text_table(["draft", "points", "a", "b", "R^2", "left-out error", "error at the largest"], rows))


def _text(
    points: list[dict[str, Any]], tokens: dict[str, LogLine], size: LogLine | None, best: list[dict[str, Any]]
) -> str:
    base = last_points(points, layers=BASE["layers"], width=BASE["width"], loss=BASE["loss"])
    seeds = ", ".join(f"{length(p):.3f}" for p in sorted(base, key=lambda p: p["seed"]))
    losses = [
        [p["loss"], f"{length(p):.3f}", f"{p['acceptance']['acceptance_rate']:.3f}"]
        for p in sorted(last_points(points, layers=2, width=192, seed=1), key=lambda p: p["loss"])
    ]
    speeds = [[str(row["batch"]), row["draft"], str(row["gamma"]), f"{row['speed']:.2f}"] for row in best]
    lines = [
        "# Scaling laws of acceptance on the built-in target",
        "Made by `python experiments/scaling_laws/study.py`. Acceptance length = tokens per row and verify call, "
        f"greedy, gamma {points[0]['acceptance']['gamma']}, {points[0]['acceptance']['num_prompts']} held-out prompts. "
        "Fit: length = a + b log10(x).",
        "*Left-out error*: each point predicted by the line through the others (root mean square). *Error at the "
        "largest*: the line through all but the largest x, minus what was measured there.",
        "![acceptance against tokens and size](pictures/laws.svg)",
        "## Training tokens",
        _fits(tokens),
        f"The base draft at the most tokens, by seed: {seeds}. Seeds alone make that difference, and "
        f"{points[0]['acceptance']['num_prompts']} prompts have a noise of their own on top: smaller differences "
        "mean nothing. The points of a run lie on one trajectory: the errors above are a curve's, not new runs'.",
        "## Draft size",
        _fits({"parameters after the embedding": size}) if size else "Too few sizes for a line.",
        "## Loss",
        markdown(text_table(["loss", "acceptance length", "acceptance rate"], losses)),
        "## Batch size",
        "The draft and gamma of the best speed that measured times and acceptance predict. Acceptance itself does not "
        "depend on the batch; what changes is the price of verifying. Times are those of single forwards, with nothing "
        "else running.",
        markdown(text_table(["batch", "draft", "gamma", "predicted speed-up"], speeds)),
        "## What of the published laws holds here",
        _verdict(tokens, size, best, max(p["tokens"] for p in points)),
    ]
    return "\n\n".join(line.rstrip("\n") for line in lines) + "\n"


def _verdict(tokens: dict[str, LogLine], size: LogLine | None, best: list[dict[str, Any]], most: int) -> str:
    """Said from the figures alone, so that it cannot flatter them."""
    fits, straight = ([getattr(line, name) for line in tokens.values()] for name in ("r_squared", "r_squared_linear"))
    overshoot = [
        line.largest_predicted - line.largest_y for line in tokens.values() if line.largest_predicted is not None
    ]
    parts = [
        f"- Tokens: R^2 from {min(fits):.3f} to {max(fits):.3f} (published: about 0.99); of lines in the tokens "
        f"themselves, without a logarithm, from {min(straight):.3f} to {max(straight):.3f}. At the largest point the "
        f"lines miss by {min(overshoot):+.3f} to {max(overshoot):+.3f}; above zero means that growth slows down, "
        "below that it speeds up."
    ]
    if size is not None:
        parts.append(
            f"- Size: R^2 {size.r_squared:.3f} over {size.num_points} sizes, depth and width mixed; a handful of "
            "points cannot tell a log-linear law from others."
        )
    gammas = [row["gamma"] for row in best]
    steadily = "" if gammas == sorted(gammas, reverse=True) else ", though not at every step,"
    trend = f"shrinks{steadily}" if gammas[-1] < gammas[0] else "does not shrink"
    parts.append(
        f"- Batch: the best draft length {trend} from batch {best[0]['batch']} to {best[-1]['batch']} ({gammas})."
    )
    parts.append(
        f"- Scale: the target has 4.7M parameters and the drafts saw at most {most:,} tokens; nothing here speaks "
        "of billions. Source of the laws: Yan et al. 2025, arXiv 2505.07858."
    )
    return "\n".join(parts)
