"""Print the best static tree for the acceptance that runs measured: ``python -m specdec.trees RESULTS > tree.json``.

The file is for ``tree=static tree.path=tree.json``. The runs must have drafted trees.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from specdec.analysis import points
from specdec.config.explain import explain
from specdec.core.files import read_lines
from specdec.errors import ConfigError
from specdec.trees.measured import chances_of
from specdec.trees.shape import best_shape, expected_accepted


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    arguments = argparse.ArgumentParser(prog="python -m specdec.trees", description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("results", help="a results_dir of run.py, or one run's folder")
    arguments.add_argument("--nodes", type=int, default=16, help="nodes of the tree, at most (default 16)")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Read all finished runs of a folder, print the tree as JSON, and what it promises on stderr."""
    given = parser().parse_args(argv)
    try:
        if given.nodes < 1:
            raise ConfigError(f"--nodes {given.nodes}: it must be at least 1")
        folders = [Path(point["folder"]) for point in points(given.results) if point["status"] == "done"]
        chances = chances_of(line for folder in folders for line in read_lines(folder / "rounds.jsonl"))
        if not any(map(any, chances)):
            raise ConfigError(
                f"{given.results}: no run in it drafted trees; run one with tree=static tree.num_nodes=64"
            )
    except Exception as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return 1
    shape = best_shape(chances, given.nodes)
    print(json.dumps({"parents": shape.parents, "ranks": shape.ranks}))
    print(
        f"{len(shape.parents)} nodes, {len(shape.levels)} deep; expected accepted tokens per row and round: "
        f"{expected_accepted(shape, chances):.2f}",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
