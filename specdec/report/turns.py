"""Points that ``repeat=N`` ran in several turns, as one point each: with medians of the speeds, and their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specdec.analysis import SETTINGS, Record
from specdec.core.tables import Interval
from specdec.report.intervals import Estimate, median

SPEEDS = ("tokens_per_s", "speedup_vs_ar")


def merge_turns(points: Sequence[Record]) -> list[Record]:
    """The same points, finished turns of one point merged, in the order of the first of them."""
    families: dict[Any, list[Record]] = {}
    for point in points:
        families.setdefault(_key(point) if point["status"] == "done" else id(point), []).append(point)
    return [merged(turns) if len(turns) > 1 else turns[0] for turns in families.values()]


def merged(turns: Sequence[Record]) -> Record:
    """The turn with the most to object to, with the medians of the speeds, ``num_turns`` and the turns' hashes."""
    worst = min(turns, key=lambda point: (-(point.get("num_failures") or 0), point.get("num_exact") or 0))
    speeds = {key: found.value for key, found in estimates(turns).items()}
    return {**worst, **speeds, "num_turns": len(turns), "turns": [point["hash"] for point in turns]}


def estimates(turns: Sequence[Record]) -> dict[str, Estimate]:
    """Medians over turns, of the speeds that every turn has."""
    found = {key: [turn[key] for turn in turns if turn.get(key) is not None] for key in SPEEDS}
    return {key: median(values) for key, values in found.items() if len(values) == len(turns)}


def over_turns(point: Record, points: Sequence[Record]) -> dict[str, Interval]:
    """The intervals of a merged point's speeds over its turns, which are among ``points``."""
    turns = [each for each in points if each["label"] == point["label"] and each["hash"] in point["turns"]]
    return {key: (found.low, found.high) for key, found in estimates(turns).items()}


def _key(point: Record) -> tuple[Any, ...]:
    settings = {key: str(value) for key, value in point.items() if key.partition(".")[0] in SETTINGS}
    return point["label"], str(point.get("experiments")), tuple(sorted(settings.items()))
