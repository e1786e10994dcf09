"""Write the table of verifiers and trees in docs/trees.md, from what they declare.

python scripts/make_trees_table.py
"""

from __future__ import annotations

import re
from pathlib import Path

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.config.judging import lossless
from specdec.core.tables import markdown, text_table
from specdec.registry import lookup, names

PAGE = Path(__file__).resolve().parent.parent / "docs" / "trees.md"
BEGIN, END = "<!-- table: written by scripts/make_trees_table.py -->\n", "<!-- end of the table -->\n"


def table() -> str:
    """A row per verifier that samples without loss, a column per tree; plug-ins of other packages are left out."""
    ours = [name for name in names("tree") if str(lookup("tree", name).target).startswith("specdec.")]
    verifiers = [entry for entry in lossless() if str(entry.target).startswith("specdec.")]
    rows = [
        [f"`{entry.name}`", *("yes" if lookup("tree", name).siblings in entry.judges else "-" for name in ours)]
        for entry in sorted(verifiers, key=lambda entry: (len(entry.judges), entry.name))
    ]
    return markdown(text_table(["verifier", *(f"`{name}`" for name in ours)], rows, 1 + len(ours)))


def page() -> str:
    """docs/trees.md with the table as it must be."""
    text = PAGE.read_text(encoding="utf-8")
    made = f"{BEGIN}{table()}{END}"
    return re.sub(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: made, text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
