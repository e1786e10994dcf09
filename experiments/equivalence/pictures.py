"""What each alignment strategy does to a ragged batch, drawn from a real run of the built-in pair.

    python experiments/equivalence/pictures.py        # writes pictures/<strategy>.svg

Every panel is one target forward: a line per row of the batch that the model was given, a square per cache column.
The colours come from the attention mask that the model really received and from what the verifier then accepted.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

import specdec.config  # noqa: F401  (declares the plug-ins)
from specdec.alignment.observation import Observed, watch
from specdec.config.resolve import resolve
from specdec.core.clock import Clock
from specdec.core.round import Round
from specdec.core.sequence import Sequence, SequencePool
from specdec.models.pair import load_pair
from specdec.run.factory import build_engine

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Patch

TEXTS = ["import os\n\n", "class Queue:\n    def __init__(self", "def add(a, b):\n    return a + b\n", "for x in"]
STRATEGIES = {
    "eqspec": [],
    "inplace": ["alignment=inplace"],
    "masked": ["alignment=masked"],
    "rollback": ["alignment=rollback"],
    "expansion": ["alignment=expansion"],
    "bsp": ["scheduler=bsp", "allow_incorrect=true"],
    "dsd": ["scheduler=dsd", "allow_incorrect=true"],
}
NUM_ROUNDS = 4
COLOURS = {
    "unseen": ("#e8e6e1", "not seen: padding, a hole, or not yet written"),
    "content": ("#4c78a8", "committed earlier"),
    "fed": ("#b8a1cf", "fed again, or the last committed token"),
    "accepted": ("#54a24b", "drafted, accepted"),
    "rejected": ("#e45756", "drafted, rejected"),
}


@dataclass
class Panel:
    """One target forward and the round that it decided."""

    seen: Observed
    outcome: Round


def record(cfg: DictConfig, num_rounds: int) -> list[Panel]:
    """Decode a few rounds of four ragged rows; keep the verifying forward of each."""
    pair = load_pair(cfg)
    engine = build_engine(cfg, pair, Clock())
    rows = [Sequence(i, pair.tokenizer(text)["input_ids"], 40) for i, text in enumerate(TEXTS)]
    pool = SequencePool(rows)
    panels = []
    for _ in range(num_rounds):
        with watch(pair.target) as seen:
            outcome = engine.step(pool)
        panels.append(Panel(seen[-1], outcome))
    return panels


def kinds(panel: Panel) -> list[list[str]]:
    """The kind of every (row of the forward, column)."""
    num_rows, num_new = panel.seen.tokens_MT.shape
    num_columns = panel.seen.mask_MTS.shape[-1]
    grid = []
    for m in range(num_rows):
        mask_TS = panel.seen.mask_MTS[m]
        # All rows draft equally many tokens here, so the last query is one that counts, and it sees all that does;
        # of a row's copies the first holds one token, the second two, and so on.
        last = num_new - 1 if num_rows == len(panel.outcome.rows) else m % num_new
        line = ["content" if visible else "unseen" for visible in mask_TS[last].tolist()]
        # The rows of a batch are those of the round, or (expansion) one copy per prefix of each of them.
        b = min(m * len(panel.outcome.rows) // num_rows, len(panel.outcome.rows) - 1)
        drafted, accepted = panel.outcome.num_drafted[b], panel.outcome.num_accepted[b]
        for t, column in enumerate(own_columns(mask_TS, panel.seen.positions_MT[m], num_columns)):
            place = t - (num_new - 1 - drafted) if num_rows == len(panel.outcome.rows) else t
            if line[column] == "unseen":
                continue
            line[column] = "fed" if place <= 0 else "accepted" if place <= accepted else "rejected"
        grid.append(line)
    return grid


def own_columns(mask_TS: torch.Tensor, positions_T: torch.Tensor, num_columns: int) -> list[int]:
    """Where each new token was written: behind the columns in use, or at its position."""
    num_new = mask_TS.shape[0]
    appended = list(range(num_columns - num_new, num_columns))
    first_later = mask_TS[0, appended[1:]].any() if num_new > 1 else False
    return positions_T.tolist() if first_later or not mask_TS[0, appended[0]] else appended


def draw(name: str, panels: list[Panel], path: Path) -> None:
    """One picture: the rounds from top to bottom."""
    grids = [kinds(panel) for panel in panels]
    width = max(len(line) for grid in grids for line in grid)
    heights = [len(grid) for grid in grids]
    size = (max(0.17 * width + 1.6, 6.2), 0.24 * sum(heights) + 0.5 * len(grids) + 0.9)
    figure, axes = plt.subplots(len(grids), 1, figsize=size, height_ratios=heights)
    for number, (axis, grid) in enumerate(zip(axes, grids, strict=True), 1):
        for m, line in enumerate(grid):
            for column, kind in enumerate(line):
                axis.add_patch(plt.Rectangle((column, m), 0.92, 0.86, color=COLOURS[kind][0], linewidth=0))
        axis.set(xlim=(0, width), ylim=(len(grid), 0), yticks=[m + 0.43 for m in range(len(grid))], xticks=[])
        axis.set_yticklabels([f"row {m * len(TEXTS) // len(grid)}" for m in range(len(grid))], size=6)
        axis.set_ylabel(f"round {number}", size=7)
        for side in axis.spines.values():
            side.set_visible(False)
    figure.suptitle(name, x=0.02, ha="left", size=10, weight="bold")
    figure.legend(
        handles=[Patch(color=colour, label=label) for colour, label in COLOURS.values()],
        loc="lower center",
        ncol=3,
        fontsize=6,
        frameon=False,
    )
    figure.tight_layout(rect=(0, 0.5 / figure.get_figheight(), 1, 1))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Draw every strategy."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "pictures")
    parser.add_argument("--format", default="svg", choices=("svg", "png", "pdf"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    plt.rcParams["svg.hashsalt"] = "specdec"  # the same picture gives the same file
    for name, overrides in STRATEGIES.items():
        with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
            cfg = resolve(compose(config_name="config", overrides=["gamma=4", *overrides]))
        path = arguments.out / f"{name}.{arguments.format}"
        draw(name, record(cfg, 2 if name == "expansion" else NUM_ROUNDS), path)
        print(f"written: {path}")


if __name__ == "__main__":
    main()
