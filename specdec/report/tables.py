"""The tables of a report, as data: a list of headings and rows of cells, for every format alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from specdec.analysis import Record
from specdec.report.content import Content, Group
from specdec.report.intervals import Interval


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure: its text, its interval's text, and a value to sort by."""

    text: str
    spread: str = ""
    value: float | str = ""
    tone: str = ""  # good, warn or bad where the figure is a verdict


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, what it means, and how a point's cell is made."""

    heading: str
    meaning: str
    cell: Callable[[Content, Record], Cell]
    is_text: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Headings and rows; ``caption`` says what all rows share."""

    title: str
    caption: str
    columns: list[Column]
    rows: list[list[Cell]]


NONE = Cell("-")
SHARED = (
    "pair",
    "data",
    "num_prompts",
    "max_new_tokens",
    "temperature",
    "dtype",
    "weights",
    "gamma",
    "drafter",
    "verifier",
)


def point_table(content: Content, group: Group) -> Table:
    """A row per point; columns that are empty or the same in all rows go, the latter into the caption."""
    rows = [[column.cell(content, point) for column in COLUMNS] for point in group.points]
    drafting = [point.get("drafter") != "none" for point in group.points]
    keep = [at for at, column in enumerate(COLUMNS) if _tells(column, [row[at] for row in rows], drafting)]
    columns = [COLUMNS[at] for at in keep]
    return Table(group.title, caption(group), columns, [[row[at] for at in keep] for row in rows])


def caption(group: Group) -> str:
    """What all finished points of a group share."""
    shared = {key: {str(point[key]) for point in group.done if point.get(key) is not None} for key in SHARED}
    return ", ".join(f"{key.replace('_', ' ')} {min(values)}" for key, values in shared.items() if len(values) == 1)


def _tells(column: Column, cells: list[Cell], drafting: list[bool]) -> bool:
    """Whether a column is worth its width; that plain decoding has gamma 0 goes without saying."""
    told = [cell for cell, drafts in zip(cells, drafting, strict=True) if drafts or column.heading != "gamma"]
    texts = {cell.text for cell in told} - {"-", ""}
    return len(texts) > (1 if column.heading in _ONLY_IF_DIFFERENT else 0)


def number(value: float | None, pattern: str, interval: Interval | None = None, scale: float = 1.0) -> Cell:
    """A figure and, where there is one, its interval, in the same pattern."""
    if value is None:
        return NONE
    told = interval is not None and interval[0] < interval[1]
    spread = f"[{interval[0] * scale:{pattern}}, {interval[1] * scale:{pattern}}]" if interval and told else ""
    return Cell(f"{value * scale:{pattern}}", spread, value)


def _text(key: str) -> Callable[[Content, Record], Cell]:
    def cell(content: Content, point: Record) -> Cell:
        value = point.get(key)
        return Cell("" if value is None else f"{value:g}" if isinstance(value, float) else str(value), "", _sort(value))

    return cell


def _sort(value: Any) -> float | str:
    return value if isinstance(value, int | float) else str(value or "")


def _figure(key: str, pattern: str, scale: float = 1.0) -> Callable[[Content, Record], Cell]:
    return lambda content, point: number(point.get(key), pattern, content.interval(point, key), scale)


def _share(key: str) -> Callable[[Content, Record], Cell]:
    """A stage's share of the decode time, in percent."""

    def cell(content: Content, point: Record) -> Cell:
        if point.get(key) is None or not point.get("decode_s"):
            return NONE
        return number(100 * point[key] / point["decode_s"], ".1f")

    return cell


def _exact(content: Content, point: Record) -> Cell:
    """The verdict on equivalence: rows equal to the reference, and whether rounding explains the others."""
    if point["status"] != "done":
        return Cell(point["status"], "", -1, "bad")
    if point.get("exact_match") is None:
        return Cell("-", "", -1)
    text = f"{point['num_exact']}/{point['num_prompts']}"
    if point["num_failures"]:
        return Cell(text, f"{point['num_failures']} failures", point["exact_match"], "bad")
    if point["num_explained"]:
        return Cell(text, f"{point['num_explained']} near-ties", point["exact_match"], "warn")
    return Cell(text, "", point["exact_match"], "good")


COLUMNS = [
    Column("method", "the scheduler, the alignment unless it is eqspec, and what else differs", _text("method"), True),
    Column("results", "the results folder", _text("label"), True),
    *(Column(key, f"the point's {key}", _text(key), True) for key in ("pair", "data", "dtype")),
    Column("batch", "rows per round", _text("batch")),
    Column("gamma", "drafted tokens per row and round", _text("gamma")),
    Column("exact", "rows whose tokens all equal the reference; differences that rounding explains", _exact),
    Column("tokens/s", "output tokens per second of wall time, prefill included", _figure("tokens_per_s", ",.0f")),
    Column("vs plain", "speed-up over the baseline, plain decoding", _figure("speedup_vs_ar", ".2f")),
    Column("accept", "accepted / drafted tokens", _figure("acceptance_rate", ".2f")),
    Column("tokens/call", "emitted tokens per row and verify call", _figure("mean_acceptance_length", ".2f")),
    Column("draft %", "share of the decode time spent drafting", _share("draft_s")),
    Column("verify %", "share of the decode time spent verifying", _share("verify_s")),
    Column("align %", "share of the decode time spent realigning", _share("align_s")),
    Column("grouped %", "rounds whose rows all have one length", _figure("grouping_rate", ".0f", 100)),
    Column("p50 s", "latency of a row, median", _figure("latency_s.p50", ".2f")),
    Column("p99 s", "latency of a row, 99th percentile", _figure("latency_s.p99", ".2f")),
    Column(
        "served/s",
        "output tokens per second from the first arrival to the last token",
        _figure("served_tokens_per_s", ",.1f"),
    ),
    Column("token p99 s", "seconds per token of a row after its first, 99th percentile", _figure("token_s.p99", ".3f")),
    Column(
        "wait p99", "most rounds in a row that passed a row over, 99th percentile", _figure("wait_rounds.p99", ".0f")
    ),
    Column("queue", "rows that waited for admission, mean over the time", _figure("queue_length.mean", ".1f")),
    Column("ttft p50 s", "time to the first token, median", _figure("ttft_s.p50", ".2f")),
    Column("MiB", "peak memory", _figure("peak_memory_bytes", ",.0f", 2.0**-20)),
    Column("partial %", "tokens before the first difference", _figure("partial_match", ".1f", 100)),
]
_ONLY_IF_DIFFERENT = ("results", "pair", "data", "dtype", "gamma", "partial %")
