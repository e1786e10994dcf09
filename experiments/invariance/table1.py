"""Table 1 of the paper with one more column: exact match in 16 bit by default, and with numerics=invariant.

    python experiments/invariance/table1.py data=spec_bench data.path=FILE data.num_prompts=32 max_new_tokens=32

Further settings are those of run.py. Writes table1.md into --out. Finished points are taken from results_dir.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from specdec.core.tables import markdown, text_table
from specdec.registry import load_entry_points

sys.path.append(str(Path(__file__).parent.parent / "equivalence"))
from study import METHODS, measure

HEADINGS = ["method", "batch", "exact by default", "near-ties", "failures", "exact, invariant", "failures"]


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("settings", nargs="*", help="further settings, as for run.py")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    load_entry_points()
    settings = ["runner.dtype=bfloat16", *arguments.settings]
    methods = {name: METHODS[name] for name in arguments.methods}
    by_numerics = [
        measure(methods, arguments.batch, [*settings, f"numerics={numerics}"]) for numerics in ("default", "invariant")
    ]
    rows = [
        [
            usual["label"],
            str(usual["batch"]),
            f"{usual['num_exact']}/{usual['num_prompts']}",
            str(usual["num_explained"]),
            str(usual["num_failures"]),
            f"{same['num_exact']}/{same['num_prompts']}",
            str(same["num_failures"]),
        ]
        for usual, same in zip(*by_numerics, strict=True)
    ]
    first = by_numerics[0][0]
    about = (
        f"Pair {first['pair']}, {first['num_prompts']} prompts of {first['data']}, {first['max_new_tokens']} new "
        f"tokens, gamma 5, {first['dtype']}, greedy. By default rows are compared with {first['reference_by']}, with "
        f"numerics=invariant with {by_numerics[1][0]['reference_by']}."
    )
    text = f"{about}\n\n{markdown(text_table(HEADINGS, rows))}"
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "table1.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
