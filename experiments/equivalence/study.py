"""Table 1 of the paper and its bug taxonomy, on any pair: exact and partial match, with every divergence classified.

    python experiments/equivalence/study.py                                  # the built-in pair and its prompts
    python experiments/equivalence/study.py data=spec_bench data.path=FILE   # further settings as for run.py

Writes table1.md, table1.tex, taxonomy.md and taxonomy.tex into the study's folder (--out). Points that are finished
are taken from results_dir, so an interrupted study goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module

import specdec.config  # noqa: F401  (declares the plug-ins)
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
HEADINGS = ("method", "batch", "exact %", "partial %", "divergences", "near-ties", "failures", "acceptance")


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


def cells(summary: dict[str, Any]) -> list[str]:
    """One row of a table."""
    rate = summary["acceptance_rate"]
    return [
        summary["label"],
        str(summary["batch"]),
        f"{100 * summary['exact_match']:.1f}",
        f"{100 * summary['partial_match']:.1f}",
        str(summary["num_divergences"]),
        str(summary["num_explained"]),
        str(summary["num_divergences"] - summary["num_explained"]),
        "-" if rate is None else f"{rate:.2f}",
    ]


def markdown(summaries: list[dict[str, Any]]) -> str:
    """A Markdown table, with what it was measured on above it."""
    lines = [" | ".join(HEADINGS), " | ".join(["---", *["---:"] * (len(HEADINGS) - 1)])]
    lines += [" | ".join(cells(summary)) for summary in summaries]
    return caption(summaries[0]) + "\n\n" + "\n".join(f"| {line} |" for line in lines) + "\n"


def latex(summaries: list[dict[str, Any]]) -> str:
    """The same table for a paper; needs the booktabs package."""
    rows, last = [], None
    for summary in summaries:
        if last not in (None, summary["label"]):
            rows.append(r"\addlinespace")
        last = summary["label"]
        rows.append(" & ".join(cells(summary)) + r" \\")
    head = " & ".join(heading.replace("%", r"\%") for heading in HEADINGS) + r" \\"
    body = "\n".join([r"\toprule", head, r"\midrule", *rows, r"\bottomrule"])
    return f"% {caption(summaries[0])}\n\\begin{{tabular}}{{l{'r' * (len(HEADINGS) - 1)}}}\n{body}\n\\end{{tabular}}\n"


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
        (arguments.out / f"{name}.md").write_text(markdown(summaries))
        (arguments.out / f"{name}.tex").write_text(latex(summaries))
        print(markdown(summaries))
        print(f"written: {arguments.out / name}.md and .tex")


if __name__ == "__main__":
    main()
