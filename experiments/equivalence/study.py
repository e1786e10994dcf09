"""Table 1 of the paper and its bug taxonomy, on any pair: exact and partial match, with every divergence classified.

    python experiments/equivalence/study.py                                  # the built-in pair and its prompts
    python experiments/equivalence/study.py data=spec_bench data.path=FILE   # further settings as for run.py

Writes table1.md, table1.tex, taxonomy.md and taxonomy.tex into the study's folder (--out). Points that are finished
are taken from results_dir, so an interrupted study resumes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module

import specdec.config  # noqa: F401  (declares the plug-ins)
from specdec.core.columns import columns
from specdec.core.tables import Column, latex, markdown, record_table
from specdec.registry import load_entry_points
from specdec.run.runner import run_point

INCORRECT = "allow_incorrect=true"
METHODS = {
    "plain": ["scheduler=plain"],
    "eqspec": ["scheduler=eqspec"],
    "exspec": ["scheduler=exspec"],
    "inplace": ["scheduler=static", "alignment=inplace"],
    "masked": ["scheduler=static", "alignment=masked"],
    "rollback": ["scheduler=static", "alignment=rollback"],
    "expansion": ["scheduler=static", "alignment=expansion"],
    "bsp": ["scheduler=bsp", INCORRECT],
    "dsd": ["scheduler=dsd", INCORRECT],
}
TOKEN_KEPT, NO_MASK, LOCKSTEP = "verifier=greedy", "alignment.attend_padding=false", "scheduler.stop_with_fastest=false"
PILED_UP = ["alignment.pile_up_padding=false", "alignment.absolute_positions=false"]
TAXONOMY = {
    "bsp, as published": METHODS["bsp"],
    "bsp, holes not counted": [*METHODS["bsp"], "alignment.count_holes=false"],
    "bsp, padding not counted": [*METHODS["bsp"], "alignment.count_padding=false"],
    "bsp, neither counted": [*METHODS["bsp"], "alignment.count_holes=false", "alignment.count_padding=false"],
    "dsd, as published": METHODS["dsd"],
    "dsd, the target's token kept": [*METHODS["dsd"], TOKEN_KEPT],
    "dsd, and padding masked": [*METHODS["dsd"], TOKEN_KEPT, NO_MASK],
    "dsd, and no row cut off": [*METHODS["dsd"], TOKEN_KEPT, NO_MASK, LOCKSTEP],
    "dsd, and padding stripped": [*METHODS["dsd"], TOKEN_KEPT, NO_MASK, LOCKSTEP, *PILED_UP],
}
COLUMNS = [
    Column("method", "label"),
    *columns("batch", "exact_match", "partial_match", "num_divergences", "num_explained", "num_failures"),
    *columns("acceptance_rate"),
]


def measure(methods: dict[str, list[str]], batches: Iterable[int], settings: list[str]) -> list[dict[str, Any]]:
    """Run every method at every batch size; returns their summaries, labelled."""
    summaries = []
    for label, overrides in methods.items():
        for batch in batches:
            point = [*overrides, f"batch={batch}", "baseline=false", *settings]
            print(f"[{label}, batch {batch}]", flush=True)
            with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
                cfg = compose(config_name="config", overrides=point)
            summaries.append({**run_point(cfg, point), "label": label})
    return summaries


def caption(summary: dict[str, Any]) -> str:
    """What all rows of a table share."""
    return (
        f"Pair {summary['pair']}, {summary['num_prompts']} prompts of {summary['data']}, "
        f"{summary['max_new_tokens']} new tokens, gamma 5, {summary['dtype']}; exact and partial match against greedy "
        "decoding of the target alone at batch 1, divergences classified by teacher forcing."
    )


def main() -> None:
    """Measure both tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("settings", nargs="*", help="further settings, as for run.py")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where the tables go")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 8], help="batch sizes (default: 1 4 8)")
    arguments = parser.parse_args()
    load_entry_points()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, methods in (("table1", METHODS), ("taxonomy", TAXONOMY)):
        summaries = measure(methods, arguments.batch, arguments.settings)
        table, about = record_table(COLUMNS, summaries), caption(summaries[0])
        text = f"{about}\n\n{markdown(table)}"
        (arguments.out / f"{name}.md").write_text(text)
        (arguments.out / f"{name}.tex").write_text(f"% {about}\n{latex(table, spaced=True)}")
        print(text)
        print(f"written: {arguments.out / name}.md and .tex")


if __name__ == "__main__":
    main()
