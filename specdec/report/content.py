"""What a report is made of: the points of all results folders, parted into groups, with their samples and intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any
from zlib import crc32

from specdec import analysis
from specdec.analysis import Record
from specdec.core.tables import Interval
from specdec.errors import ConfigError
from specdec.registry import unknown
from specdec.report.intervals import intervals, tokens_and_seconds
from specdec.report.turns import merge_turns, over_turns

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_GROUP = ("experiment", "pair", "data", "temperature", "max_new_tokens", "dtype")
"""Points that differ in one of these cannot be compared, so they get tables and plots of their own."""
NUM_SLOTS = 8
USUAL = ("eqspec", "exspec", "continuous inplace", "static inplace", "bsp", "dsd", "plain_static", "plain")
USUAL_SLOTS = {name: slot for slot, name in enumerate(USUAL)}
"""Colours of the methods that most reports have; others have those that their names choose."""
ALWAYS_NAMED = ("experiment", "pair", "data")


@dataclass(slots=True)
class Group:
    """Points that one table shows, under names that tell them apart within it."""

    keys: dict[str, Any]
    points: list[Record]
    experiment: str | None = None

    @property
    def title(self) -> str:
        """What the group's points share, of the keys that groups differ in."""
        keys = {key: value for key, value in self.keys.items() if value is not None}
        return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in keys.items()) or "all points"

    @property
    def labels(self) -> list[str]:
        """The results folders that its points come from."""
        return list(dict.fromkeys(point["label"] for point in self.points))

    @property
    def done(self) -> list[Record]:
        """Its finished points."""
        return [point for point in self.points if point["status"] == "done"]

    def series(self, point: Record) -> str:
        """What a legend calls a point: its method, and the results folder where there are several."""
        return series(point, self.labels)

    @property
    def methods(self) -> list[str]:
        """The methods in a fixed order, plain decoding last."""
        named = {self.series(point): point for point in reversed(self.done)}
        return sorted(
            named, key=lambda name: (analysis.is_plain(named[name]), self.labels.index(named[name]["label"]), name)
        )

    @property
    def slots(self) -> dict[str, int]:
        """A colour and a marker per method, the same in every report unless two methods of one group want the same."""
        taken: dict[str, int] = {}
        for name in sorted(self.methods, key=lambda name: (name not in USUAL_SLOTS, name)):
            wanted = USUAL_SLOTS.get(name, crc32(name.encode()) % NUM_SLOTS)
            turns = ((wanted + step) % NUM_SLOTS + step // NUM_SLOTS * NUM_SLOTS for step in count())
            taken[name] = next(slot for slot in turns if slot not in taken.values())
        return taken

    def rows_of(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Lines of samples or rounds of the group's finished points, with each one's ``place`` and ``series``."""
        names = {place(point): self.series(point) for point in self.done}
        keys = zip(frame["label"], frame["hash"], strict=True) if len(frame) else ()
        places = [f"{label}/{run_hash}" for label, run_hash in keys]
        rows: pd.DataFrame = frame.assign(place=places, series=[names.get(each) for each in places])
        return rows.dropna(subset=["series"])


@dataclass(slots=True)
class ReportContent:
    """Everything that the tables, figures and pages draw from."""

    points: list[Record]
    groups: list[Group]
    samples: pd.DataFrame
    rounds: pd.DataFrame
    intervals: dict[str, dict[str, Interval]]  # by place (label/hash), then by summary key

    @property
    def labels(self) -> list[str]:
        """The results folders."""
        return list(dict.fromkeys(point["label"] for point in self.points))

    @property
    def failed(self) -> list[Record]:
        """Points that failed."""
        return [point for point in self.points if point["status"] == "failed"]

    @property
    def num_unfinished(self) -> int:
        """Points that run now, or were killed."""
        return sum(point["status"] == "unfinished" for point in self.points)

    def interval(self, point: Record, key: str) -> Interval | None:
        """The bootstrap interval of a point's figure."""
        return self.intervals.get(place(point), {}).get(key)


def collect(sources: Sequence[analysis.Source], group: Sequence[str] = ()) -> ReportContent:
    """Read results folders.

    Args:
        group: the keys whose values part the tables; empty for `DEFAULT_GROUP`.

    Raises:
        ConfigError: a folder holds no results, or a key of ``group`` is in none of them.
    """
    every = analysis.points(*sources)
    points = merge_turns(every)
    samples, rounds = analysis.lines("samples.jsonl", points), analysis.lines("rounds.jsonl", points)
    known = {key for point in points for key in point} | {"experiment"}
    for key in group:
        if key not in known:
            raise ConfigError(unknown("key of --group", key, known))
    groups = _part(points, [key for key in group or DEFAULT_GROUP if key in known])
    found = _all_intervals(points, samples, rounds)
    for point in points:
        if point.get("num_turns", 1) > 1:
            found[place(point)] |= over_turns(point, every)
    return ReportContent(points, groups, samples, rounds, found)


def place(point: Record) -> str:
    """Where a point lies: unique over all results folders."""
    return f"{point['label']}/{point.get('hash', '')}"


def series(point: Record, labels: Sequence[str]) -> str:
    """What a legend calls a point: its method, and the results folder where there are several."""
    return f"{point['method']} ({point['label']})" if len(labels) > 1 else str(point["method"])


def _part(points: list[Record], keys: Sequence[str]) -> list[Group]:
    """Groups by the values of ``keys``, each with copies of its points, because one may belong to several experiments.

    A point that failed before it had a value of a key joins the group that its other values fit.
    """
    groups: dict[tuple[str, ...], Group] = {}
    for point in sorted(points, key=lambda point: point["status"] != "done"):
        for experiment in (point.get("experiments") or [point.get("experiment")]) if "experiment" in keys else [None]:
            copy = {**point, "experiment": experiment}
            values = {key: copy.get(key) for key in keys}
            home = next((group for group in groups.values() if _fits(copy, group.keys)), None)
            if home is None or point["status"] == "done":
                home = groups.setdefault(tuple(map(str, values.values())), Group(values, [], experiment))
            home.points.append(copy)
    parted = list(groups.values())
    differing = [key for key in keys if len({str(group.keys[key]) for group in parted}) > 1]
    for group in parted:
        analysis.name_methods(group.points)
        _name_models(group.points)
        group.points.sort(key=analysis.order)
        group.keys = {key: group.keys[key] for key in keys if key in differing or key in ALWAYS_NAMED}
    return parted


def _name_models(points: list[Record]) -> None:
    """Add pair and data to the methods' names where they differ within a group, so that no two share a curve."""
    for key in ("pair", "data"):
        if len({str(point[key]) for point in points if key in point}) > 1:
            for point in points:
                point["method"] += f" {point.get(key, '')}".rstrip()


def _fits(point: Record, keys: dict[str, Any]) -> bool:
    return all(point.get(key) is None or str(point[key]) == str(value) for key, value in keys.items())


def _all_intervals(points: list[Record], samples: pd.DataFrame, rounds: pd.DataFrame) -> dict[str, dict[str, Interval]]:
    if not len(samples):
        return {}
    samples_of = dict(list(samples.groupby(samples["label"] + "/" + samples["hash"])))
    rounds_of = {key: tokens_and_seconds(part) for key, part in rounds.groupby(rounds["label"] + "/" + rounds["hash"])}
    return {
        place(point): intervals(
            point,
            samples_of[place(point)],
            rounds_of.get(place(point), tokens_and_seconds(rounds[:0])),
            rounds_of.get(f"{point['label']}/{point.get('baseline')}"),
        )
        for point in points
        if place(point) in samples_of
    }
