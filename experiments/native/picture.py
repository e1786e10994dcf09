"""SmolLM2 against other engines, from the table in engines.md: tokens per second by batch size, with who is exact.

python experiments/native/picture.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

FOLDER = Path(__file__).parent
HEADING = "### smollm2, prompts of 100 tokens"
SHOWN = {  # method: name, colour
    "continuous-goodput": ("specdec (goodput)", "#0b7a55"),
    "openvino": ("OpenVINO GenAI", "#4e79a7"),
    "vllm-cpu": ("vLLM, CPU build", "#b07aa1"),
    "hf-generate": ("HF generate", "#7a7f87"),
    "llamacpp": ("llama.cpp, 4 bit", "#e15759"),
}
STYLE = {"svg.hashsalt": "specdec", "svg.fonttype": "none", "font.size": 11, "font.family": "sans-serif"}


def table(text: str) -> dict[str, tuple[str, list[float]]]:
    """By method: which rows are exact, and tokens per second by batch size; the key "method" has the batch sizes."""
    lines = [line for line in text.partition(HEADING)[2].splitlines()[1:] if line.startswith("| ")]
    found: dict[str, tuple[str, list[float]]] = {}
    for line in lines:
        name, exact, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if name in found:  # the next table begins
            break
        if not name.startswith("-"):
            found[name] = exact, [float(c.removeprefix("batch ").replace(",", "")) for c in cells if c != "-"]
    return found


def draw(axes: Any, found: dict[str, tuple[str, list[float]]]) -> None:
    """One line per engine, named at its end."""
    batches = found["method"][1]
    ends = []
    for method, (name, colour) in SHOWN.items():
        exact, rates = found[method]
        own = method == "continuous-goodput"
        axes.plot(batches, rates, "o-" if exact == "all" else "o:", color=colour, lw=2.8 if own else 1.6, ms=5)
        ends.append([rates[-1], f"{name}: {'exact' if exact == 'all' else 'not exact'}", colour])
    last = -1e9
    for end in sorted(ends):  # names that would overlap move up
        last = end[0] = max(end[0], last + 5)
        axes.annotate(end[1], (batches[-1], end[0]), (10, -4), textcoords="offset points", color=end[2])
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [f"{batch:g}" for batch in batches])
    axes.set(xlabel="batch size", ylabel="tokens per second", ylim=(0, None))
    axes.grid(axis="y", color="#e3e6ea")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Write smollm2.svg."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 3.8), layout="constrained")
        axes = figure.subplots()
        draw(axes, table((FOLDER / "engines.md").read_text()))
        axes.set_title("SmolLM2-135M, float32, one CPU core, Spec-Bench prompts of 100 tokens", fontsize=11, loc="left")
        figure.savefig(FOLDER / "smollm2.svg", metadata={"Date": None}, transparent=False)


if __name__ == "__main__":
    main()
