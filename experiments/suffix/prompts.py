"""40 prompts whose outputs repeat: a function of the standard library, edited three times, the third edit cut off.

    python experiments/suffix/prompts.py results/suffix/edits.jsonl

Each is what an agent's context looks like after some edits of one file: the function, the function with a name changed,
and the beginning of the function with another name changed, which the model continues. The sources are those of the
running Python; the seed is fixed.
"""

from __future__ import annotations

import ast
import json
import random
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

NUM_PROMPTS, SEED = 40, 1
MODULES = (
    "textwrap",
    "shutil",
    "tarfile",
    "zipfile",
    "argparse",
    "configparser",
    "csv",
    "difflib",
    "fractions",
    "heapq",
)
MIN_LINES, MAX_LINES = 12, 24
SHOWN_LINES = 2  # of the last edit


def functions() -> Iterator[str]:
    """Sources of functions of a suitable length, with their comments."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    for name in MODULES:
        text = (folder / f"{name}.py").read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            source = ast.get_source_segment(text, node) if isinstance(node, ast.FunctionDef) else None
            if source is not None and MIN_LINES <= len(source.splitlines()) <= MAX_LINES:
                yield source


def names_of(source: str) -> list[str]:
    """Its variables, the most frequent first."""
    tree = ast.parse(source.strip())
    found = Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    return [name for name, count in found.most_common() if count > 1 and len(name) > 2]


def renamed(source: str, name: str) -> str:
    """The source with a variable's name changed wherever it stands as a word."""
    return re.sub(rf"\b{name}\b", f"{name}_new", source)


def prompts() -> Iterator[str]:
    """As many as there are functions with two names to change."""
    for source in functions():
        names = names_of(source)
        if len(names) > 1:
            second = renamed(source, names[0])
            third = renamed(second, names[1]).splitlines()
            yield "\n\n".join([source, second, "\n".join(third[:SHOWN_LINES])]) + "\n"


def main() -> None:
    """Write a seeded choice, one prompt per line."""
    out = Path(sys.argv[1])
    out.parent.mkdir(parents=True, exist_ok=True)
    chosen = random.Random(SEED).sample(sorted(set(prompts())), NUM_PROMPTS)
    out.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in chosen), encoding="utf-8")


if __name__ == "__main__":
    main()
