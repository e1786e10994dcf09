"""The best fixed shape for a temperature and batch size, from a table of measured ones."""

from __future__ import annotations

import json
from math import isclose, log2
from pathlib import Path
from typing import Any

from specdec.errors import ConfigError
from specdec.selectors.base import Roots, RowShape, Selector, SelectorContext, chosen_shape

HOW = "measure one with python -m specdec.selectors RESULTS > FILE"


class StaticSelector(Selector):
    """One shape for all rows and rounds: that of the nearest measured batch size."""

    def __init__(self, context: SelectorContext, *, path: str | None) -> None:
        self._shapes = matching(path, context)
        self._shape = self._shapes[min(self._shapes)]

    def prepare(self, batch: int) -> None:
        nearest = min(self._shapes, key=lambda size: (abs(log2(size / batch)), size))
        self._shape = self._shapes[nearest]

    def choose(self, roots: Roots) -> list[RowShape]:
        whole = self._shape
        return [RowShape(whole.width, whole.trunk, min(whole.depth, depth)) for depth in roots.depths]


def matching(path: str | None, context: SelectorContext) -> dict[int, RowShape]:
    """The shapes of a table for this pair, verifier and temperature, by batch size.

    Raises:
        ConfigError: there is no such file, it is no table, a shape is out of range, or none was measured for this.
    """
    if path is None:
        raise ConfigError(f"selector=static needs selector.path=FILE; {HOW}")
    lines = read_table(path)
    ours = [line for line in lines if line["pair"] == context.pair]
    if not ours:
        raise ConfigError(f"selector.path={path} was measured for another pair: {HOW}")
    same = [line for line in ours if line["verifier"] == context.verifier]
    if not same:
        known = ", ".join(sorted({line["verifier"] for line in ours}))
        raise ConfigError(f"selector.path={path} has no shape for verifier={context.verifier}, only for {known}: {HOW}")
    found = [line for line in same if isclose(line["temperature"], context.params.temperature, abs_tol=1e-9)]
    if not found:
        known = ", ".join(f"{value:g}" for value in sorted({line["temperature"] for line in same}))
        raise ConfigError(
            f"selector.path={path} has no shape for temperature={context.params.temperature:g}, only for {known}: {HOW}"
        )
    shapes = {}
    for line in found:
        shape = chosen_shape(f"selector.path={path}", *(line[key] for key in ("num_paths", "trunk", "branch")))
        if shape.width > context.num_paths or shape.depth > context.depth:
            raise ConfigError(
                f"selector.path={path} has {shape.width} paths of {shape.depth} tokens at batch {line['batch']}: set "
                f"tree.num_paths and gamma to as much, at least (now {context.num_paths} and {context.depth})"
            )
        shapes[max(int(line["batch"]), 1)] = shape
    return shapes


def read_table(path: str) -> list[dict[str, Any]]:
    """The lines of a table of shapes."""
    try:
        lines = json.loads(Path(path).read_text(encoding="utf-8"))["shapes"]
        for line in lines:
            line["temperature"], line["batch"] = float(line["temperature"]), int(line["batch"])
            _ = [line[key] for key in ("pair", "verifier", "num_paths", "trunk", "branch")]
    except OSError as error:
        raise ConfigError(f"selector.path={path}: {error.strerror}; {HOW}") from None
    except (ValueError, TypeError, KeyError):
        raise ConfigError(f"selector.path={path}: no table of shapes; {HOW}") from None
    return list(lines)
