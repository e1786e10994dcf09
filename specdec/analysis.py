"""Results on disk as data frames: the only reader, for notebooks, the report and your own scripts.

    from specdec import analysis
    points = analysis.load("results")              # one row per point; failed and unfinished ones too, see `status`
    samples = analysis.samples("results")          # one row per prompt of every finished point
    rounds = analysis.rounds("results")            # one row per round
    analysis.connect("results").sql("select method, batch, avg(exact::int) from samples group by all")

A results folder may be given a name of its own in the column ``label``: ``analysis.load("before=old", "after=new")``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specdec.config.drafter_weights import UNTRAINED
from specdec.config.labels import tell_apart
from specdec.config.schema import NOT_IDENTITY, RunConfig
from specdec.core.files import flatten, read_lines
from specdec.core.siblings import CHAIN
from specdec.errors import ConfigError, DataError

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

Source = str | os.PathLike[str]
Record = dict[str, Any]
SETTINGS = frozenset(RunConfig.__dataclass_fields__) - {"turn", *NOT_IDENTITY}
"""What tells points apart."""
ON_EVERY_LINE = ("hash", "label", "method", "batch", "pair", "data")
"""What `samples` and `rounds` carry of their point."""
_COUNTED_AS = {"samples.jsonl": "num_prompts", "rounds.jsonl": "num_verify_calls"}
"""The key of the summary that says how many lines a file has."""
REFERENCE = "eqspec"
DISTINGUISHING = (
    *(
        "drafter",
        "tree",
        "verifier",
        "draft_length",
        "budget",
        "batching",
        "window",
        "lengths",
        "gamma",
        "temperature",
        "dtype",
    ),
    *("weights", "max_new_tokens", "num_prompts"),
)
"""Keys that enter a method's name where points of one scheduler differ in them, in this order."""


def load(*results: Source) -> pd.DataFrame:
    """One row per point, in a stable order; see :func:`points` for the columns."""
    return _frame(points(*results))


def samples(*results: Source) -> pd.DataFrame:
    """One row per prompt of every finished point: samples.jsonl, with the point's `ON_EVERY_LINE`."""
    return lines("samples.jsonl", points(*results))


def rounds(*results: Source) -> pd.DataFrame:
    """One row per round of every finished point: rounds.jsonl, with the point's `ON_EVERY_LINE` and `round`."""
    return lines("rounds.jsonl", points(*results))


def per_round(rounds: pd.DataFrame, key: str) -> pd.Series:
    """A column of ``rounds`` about depths; results from before there were trees count tokens of chains instead."""
    chains: pd.Series = rounds["num_drafted"]
    found: pd.Series = rounds[key].where(rounds[key].notna(), chains) if key in rounds else chains
    return found


def lines(name: str, found: Iterable[Record]) -> pd.DataFrame:
    """The lines of a JSONL file of every finished point of :func:`points`, with the point's `ON_EVERY_LINE`."""
    return _frame(_lines(name, found))


def connect(*results: Source) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection in memory with the tables ``points``, ``samples`` and ``rounds``."""
    connection: duckdb.DuckDBPyConnection = require("duckdb").connect()
    found = points(*results)
    tables = {"points": _frame(found), **{name: lines(f"{name}.jsonl", found) for name in ("samples", "rounds")}}
    for name, frame in tables.items():
        connection.register("frame", frame)
        connection.execute(f"create table {name} as select * from frame")
        connection.unregister("frame")
    return connection


def points(*results: Source) -> list[Record]:
    """The same as :func:`load`, as plain dicts.

    Keys: those of summary.json, nested ones dotted (``latency_s.p50``); ``label`` (which results folder), ``folder``
    (the run's), ``method`` (what a table calls it); ``pair``, followed by a fingerprint where one name stands for
    several; and every setting of config.yaml under its dotted name
    (``batching.window``). A failed point has ``status`` "failed", its ``error`` and ``overrides``; an unfinished one
    (running now, or killed) has ``status`` "unfinished".

    Raises:
        ConfigError: a folder does not exist, or holds no results.
    """
    found: list[Record] = []
    for label, folder in named(results):
        records = [*_run_folders(label, folder)]
        found += records + list(_failed(label, folder, records))
        if not records and not found:
            raise ConfigError(f"{folder}: no results in it; give a results_dir of run.py, or one run's folder")
    tell_apart(found)
    name_methods(found)
    return sorted(found, key=order)


def order(point: Record) -> tuple[Any, ...]:
    """Sort key: finished points first, plain decoding before the methods compared with it, then name and batch size."""
    drafts = not is_plain(point)
    return point["status"] != "done", point["label"], str(point["pair"]), drafts, point["method"], point["batch"]


def named(results: Iterable[Source]) -> list[tuple[str, Path]]:
    """Results folders with a label each: the one given by ``LABEL=FOLDER``, or the shortest path that is unique."""
    folders: list[tuple[str | None, Path]] = []
    for source in results:
        label, equals, path = str(source).rpartition("=")
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder; give a results_dir of run.py")
        folders.append((label if equals else None, folder))
    for depth in range(1, 20):
        short = [label or "/".join(folder.resolve().parts[-depth:]) for label, folder in folders]
        if len(set(short)) == len(short):
            return [(label, folder) for label, (_, folder) in zip(short, folders, strict=True)]
    raise ConfigError(f"{folders[0][1]}: given twice; give each results folder once, or name them LABEL=FOLDER")


def require(module: str) -> Any:
    """Import a package of the `analysis` extra.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ConfigError(f"{package} is not installed: pip install 'specdec[analysis]'") from error


def name_methods(found: list[Record]) -> None:
    """Set ``method``: the scheduler's label, the alignment, and all else that such points differ in but the batch size.

    An alignment is left out where it is the reference, named by the scheduler's label, or that of all plain decoding.
    Trained drafters of one kind are different models if they are in different folders, at any batch size.
    """
    for family in _families(found, "scheduler"):
        scheduler = family[0]["scheduler"]
        differing = [key for key in DISTINGUISHING if len({str(p[key]) for p in family if key in p}) > 1]
        unsaid = {REFERENCE, scheduler}
        if len(alignments := {p.get("alignment") for p in family}) == 1 and all(map(is_plain, family)):
            unsaid |= alignments  # nothing is realigned in plain decoding
        for point in family:
            alignment = point.get("alignment", REFERENCE)
            words = [] if alignment in unsaid else [alignment]
            if point.get("tree", CHAIN) != CHAIN and "tree" not in differing:
                words.append(point["tree"])
            words += [_word(key, point[key]) for key in differing if (key, point.get(key, CHAIN)) != ("tree", CHAIN)]
            if UNTRAINED in str(point.get("drafter")) and "drafter" not in differing:
                words.append(UNTRAINED)
            point["method"] = " ".join([scheduler, *words])
    trained = [point for point in found if point.get("drafter.path")]
    for family in _families(trained, "method", "pair", "drafter"):
        if len({point["drafter.path"] for point in family}) > 1:
            for point in family:
                point["method"] += f" {point['drafter.path']}"
    for twins in _families(found, "label", "method", "batch", "pair", "data", "experiment"):
        settings = dict.fromkeys(key for point in twins for key in point if key.partition(".")[0] in SETTINGS)
        differing = [key for key in settings if len({str(point.get(key)) for point in twins}) > 1]
        for point in twins:
            words = [_word(key.rpartition(".")[2], point.get(key)) for key in differing if key not in DISTINGUISHING]
            point["method"] = " ".join([point["method"], *words])


def _families(found: list[Record], *keys: str) -> list[list[Record]]:
    """Points with the same values of these keys."""
    families: dict[tuple[str, ...], list[Record]] = {}
    for point in found:
        families.setdefault(tuple(str(point.get(key)) for key in keys), []).append(point)
    return list(families.values())


def is_plain(point: Record) -> bool:
    """Whether a point decodes without speculation."""
    return point.get("drafter") == "none"


def _word(key: str, value: Any) -> str:
    return value if isinstance(value, str) else f"{key}={'null' if value is None else value}"


def _run_folders(label: str, results: Path) -> Iterator[Record]:
    """Finished and unfinished runs of a results folder, or the one run that the folder is."""
    for config in sorted([*results.glob("config.yaml"), *results.glob("*/config.yaml")]):
        folder = config.parent
        settings = _settings(config)
        summary = flatten(read_json(folder / "summary.json")) or _unfinished(folder, settings)
        place = {"hash": folder.name, "label": label, "folder": str(folder)}
        env = read_json(folder / "env.json")
        found = {"target_fingerprint": env.get("pair_fingerprint"), "draft_fingerprint": env.get("draft_fingerprint")}
        found["data_fingerprint"] = (env.get("inputs") or {}).get("data.path")
        yield {"overrides": env.get("overrides"), **found, **settings, **summary, **place}


def read_json(file: Path) -> Record:
    """A JSON object; empty if there is no such file.

    Raises:
        DataError: the file is damaged.
    """
    try:
        loaded = json.loads(file.read_bytes())
    except OSError:
        return {}
    except ValueError as error:
        raise _damaged(file, error) from None
    return loaded if isinstance(loaded, dict) else {}


def _damaged(file: Path, reason: object) -> DataError:
    short = " ".join(str(reason).split())
    return DataError(f"{file} is damaged ({short}): run its point again, or move its folder away")


def _settings(config: Path) -> Record:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where available
    try:
        loaded = yaml.load(config.read_bytes(), Loader=loader)
    except (yaml.YAMLError, ValueError) as error:
        raise _damaged(config, error) from None
    return flatten(loaded) if isinstance(loaded, dict) else {}


def _unfinished(folder: Path, settings: Record) -> Record:
    return {
        **(read_json(folder / "failure.json") or {"status": "unfinished"}),
        "pair": settings.get("pair.name", ""),
        "data": settings.get("data.name", ""),
        "scheduler": settings.get("scheduler.label", ""),
        "batch": settings.get("batch", 0),
    }


def _failed(label: str, results: Path, records: list[Record]) -> Iterator[Record]:
    """Points that failed before they had a folder, and that no later sweep or run finished."""
    last: dict[str, Record] = {}
    for file in sorted(results.glob("sweeps/*/points.jsonl")):
        last |= {_asked(outcome): outcome for outcome in read_lines(file)}
    have_folders = {_asked(record) for record in records}
    for asked, outcome in last.items():
        if outcome.get("status") == "failed" and asked not in have_folders:
            yield {**flatten(outcome), "label": label, "folder": None, "hash": ""}


def _asked(record: Record) -> str:
    """The settings that a point was asked for, in any order."""
    return " ".join(sorted(map(str, record.get("overrides") or ())))


def _lines(name: str, found: Iterable[Record]) -> Iterator[Record]:
    for point in found:
        if point["status"] != "done":
            continue
        carried = {key: point[key] for key in ON_EVERY_LINE}
        file = Path(point["folder"]) / name
        found_lines = list(read_lines(file))
        if (expected := point.get(_COUNTED_AS.get(name, ""))) is not None and len(found_lines) != expected:
            raise _damaged(file, f"{len(found_lines)} of {expected} lines can be read")
        for number, record in enumerate(found_lines):
            yield {**carried, **({"round": number} if name == "rounds.jsonl" else {}), **record}


def _frame(records: Iterable[Record]) -> pd.DataFrame:
    frame: pd.DataFrame = require("pandas").DataFrame(records)
    return frame
