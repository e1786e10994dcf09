"""Which budget policies leave a row's law alone: exact enumeration over random pairs of rows.

python experiments/budget/laws.py                  # writes laws.md, some minutes on one core
python experiments/budget/laws.py --pairs 10 --only early_stop   # prints the table
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.conformance.neighbours import BLOCK, REJECTION, LawCase, check_budget
from specdec.conformance.row_laws import PATHS
from specdec.registry import create

POLICIES = [
    ("early_stop", {}),
    ("early_stop", {"convex": False}),
    ("top_survival", {"tokens": 2}),
    ("top_survival", {}),
    ("top_max_q", {"tokens": 2}),
    ("global_optimum", {}),
    ("own_q", {"tokens": 2}),
    ("own_q", {}),
]
COLUMNS = {
    "rejection": {"rule": REJECTION},
    "block": {"rule": BLOCK},
    "rejection, alone": {"rule": REJECTION, "num_rows": 1},
    "two paths": {"kind": PATHS},
    "chosen drafts": {"chosen": True},
}
FEW = ("two paths",)  # 256 combinations of drafts each


def cell(name: str, params: dict[str, int], column: str, num_pairs: int) -> str:
    """How many pairs a policy biases, and by how much at most."""
    num_pairs = max(num_pairs // 10, 1) if column in FEW else num_pairs
    far = []
    for seed in range(num_pairs):
        found = check_budget(LawCase(seed, **COLUMNS[column]), partial(create, "budget", name, **params))
        far += [float(broken.detail.split("tokens are ")[1].split()[0]) for broken in found]
    return f"**{len(far)}/{num_pairs}, up to {max(far):.2f}**" if far else f"exact {num_pairs}/{num_pairs}"


def table(num_pairs: int, only: list[str]) -> str:
    lines = ["| policy | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for name, params in POLICIES:
        if only and name not in only:
            continue
        settings = "".join(f", {key}={value}" for key, value in params.items())
        cells = [cell(name, params, column, num_pairs) for column in COLUMNS]
        lines.append(f"| `{name}`{settings} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=None)
    parser.add_argument("--only", nargs="*", default=[], help="these policies")
    arguments = parser.parse_args()
    text = table(arguments.pairs or 120, arguments.only)
    if arguments.pairs is None and not arguments.only:
        (Path(__file__).parent / "laws.md").write_text(text)


if __name__ == "__main__":
    main()
