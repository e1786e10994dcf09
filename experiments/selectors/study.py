"""Delayed trees with a selector against the best static shape: tokens per row and round, and tokens/s, in turns.

    python experiments/selectors/study.py FOLDER [--batches 1 8] [--temperatures 0.2 0.6 1.0] [--turns 6]

FOLDER is what `train.py task=selector` exported: its network, and its table of the best static shapes. All conditions
decode the same prompts in every turn, each turn with another seed and the conditions in another order. Intervals: 95%,
bootstrap over turns, of each condition's figure relative to that of the static shape in the same turn. Speeds are per
second of this thread's processor time (one thread; prefill of rows that join later is included).
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_module

from specdec.config.resolve import resolve
from specdec.core.clock import Clock
from specdec.core.prompts import load_prompts
from specdec.core.round import Round
from specdec.models.pair import load_pair
from specdec.run.decode import Watch, decode

Figures = dict[str, list[tuple[float, float]]]  # tokens per row and round, and per second, of every turn


class Rounds:
    """Tokens and this thread's processor seconds from the end of the first round on: other jobs do not count."""

    def __init__(self) -> None:
        self.tokens, self.start_s, self.end_s = 0, 0.0, 0.0

    def observe(self, outcome: Round, clock: Clock) -> None:
        """Called after every round."""
        self.end_s = time.thread_time()
        if self.start_s:
            self.tokens += sum(map(len, outcome.emitted))
        else:
            self.start_s = self.end_s

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.tokens / (self.end_s - self.start_s)


def conditions(folder: str, estimate: bool) -> dict[str, list[str]]:
    """What is compared, by name; the first is what the others are relative to."""
    usual = ["tree=delayed", "tree.num_paths=4"]
    found = {
        "static": [*usual, "selector=static", f"selector.path={folder}/shapes.json"],
        "trained": [*usual, "selector=trained", f"selector.path={folder}"],
        "tree (3, 2, 3)": ["tree=delayed", "tree.num_paths=3", "tree.trunk=2"],
        "chain of 5": ["tree=paths", "tree.num_paths=1"],
        "goodput": [
            "tree=delayed",
            "tree.num_paths=4",
            "tree.trunk=1",
            "draft_length=goodput",
            "draft_length.max_gamma=5",
        ],
    }
    if estimate:
        found["estimate, tokens"] = [*usual, "selector=estimate", "selector.by=tokens"]
    return found


def measure(given: argparse.Namespace, temperature: float, batch: int) -> Figures:
    """All turns of all conditions."""
    settings = json.loads((Path(given.folder) / "config.json").read_text())
    words = [f"verifier={settings['verifier']}", f"gamma={settings['depth']}", "scheduler=continuous"]
    words += [f"temperature={temperature}", f"batch={batch}", f"max_new_tokens={given.new_tokens}"]
    words += [f"data.num_prompts={given.prompts}", "runner=cpu", f"results_dir={given.folder}/profiles"]
    words += given.settings
    names = conditions(given.folder, given.estimate)
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        configs = {name: resolve(compose("config", overrides=words + own)) for name, own in names.items()}
    some = configs["static"]
    pair = load_pair(some)
    prompts, _ = load_prompts(some.data, pair.tokenizer, pair.context_length - given.new_tokens)
    figures: Figures = {name: [] for name in configs}
    order = np.random.default_rng(0)
    for turn in range(given.turns):
        for name in order.permutation(list(configs)):
            watch = Rounds()
            done = decode(replace(configs[name], seed=turn), pair, prompts, watch=Watch(observers=(watch.observe,)))
            tokens = sum(len(row.output_ids) for row in done.rows)
            rounds = sum(len(row.accepted_lengths) for row in done.rows)
            figures[name].append((tokens / rounds, watch.speed))
    return figures


def relative(figures: Figures, name: str, column: int) -> str:
    """Mean, and the ratio to the static shape with its interval."""
    own, base = (np.array([turn[column] for turn in figures[key]]) for key in (name, "static"))
    random = np.random.default_rng(0)
    ratios = [own[pick].sum() / base[pick].sum() for pick in random.integers(0, len(own), (999, len(own)))]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return f"{own.mean():.4g} ({own.sum() / base.sum():.3f} [{low:.3f}, {high:.3f}])"


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("settings", nargs="*", help="further settings, as for run.py: the pair that it is for")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.2, 0.6, 1.0])
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--estimate", action="store_true", help="also the estimate of tokens per round, which is slow")
    given = parser.parse_args()
    print(
        "| temperature | batch | | tokens per row and round (to static) | tokens/s (to static) |\n|---|---|---|---|---|"
    )
    for temperature in given.temperatures:
        for batch in given.batches:
            figures = measure(given, temperature, batch)
            for name in figures:
                cells = [f"{temperature:g}", str(batch), name, *(relative(figures, name, column) for column in (0, 1))]
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
