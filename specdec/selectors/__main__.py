"""Print the fastest measured shapes of tree=delayed: ``python -m specdec.selectors RESULTS > shapes.json``.

The file is for ``selector=static selector.path=shapes.json``: per pair, verifier, temperature and batch size the shape
of the most tokens per second among the finished runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from specdec.analysis import points
from specdec.config.explain import explain
from specdec.errors import ConfigError

BY = {"speed": "tokens_per_s", "tokens": "mean_acceptance_length"}


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    arguments = argparse.ArgumentParser(
        prog="python -m specdec.selectors", description=(__doc__ or "").partition("\n")[0]
    )
    arguments.add_argument("results", nargs="+", help="results_dir of run.py")
    arguments.add_argument("--by", choices=BY, default="speed", help="speed (tokens/s) or tokens (per row and round)")
    return arguments


def best_shapes(found: list[dict[str, Any]], by: str = "speed") -> list[dict[str, Any]]:
    """The lines of the table: of each pair, verifier, temperature and batch size the best point's shape."""
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for point in found:
        if point["status"] != "done" or point.get("tree") != "delayed":
            continue
        pair = [point["target_fingerprint"], point["draft_fingerprint"] or ""]
        key = (*pair, point["verifier"], point["temperature"], point["batch"])
        trunk = min(point["tree.trunk"], point["gamma"])
        line = {
            "pair": pair,
            **{name: point[name] for name in ("verifier", "temperature", "batch")},
            "num_paths": point["tree.num_paths"],
            "trunk": trunk,
            "branch": point["gamma"] - trunk,
            **{name: point[name] for name in BY.values()},
        }
        if key not in best or line[BY[by]] > best[key][BY[by]]:
            best[key] = line
    return [best[key] for key in sorted(best)]


def main(argv: list[str] | None = None) -> int:
    """Read all finished runs of some folders, and print the table as JSON."""
    given = parser().parse_args(argv)
    try:
        shapes = best_shapes(points(*given.results), given.by)
        if not shapes:
            raise ConfigError(
                f"{' '.join(given.results)}: no finished run with tree=delayed in it; run a sweep such as "
                "tree=delayed tree.num_paths=1,2,3 tree.trunk=0,1,2 gamma=4,5 -m"
            )
    except Exception as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return 1
    print(json.dumps({"shapes": shapes}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
