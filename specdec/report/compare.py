"""The paper's figures beside ours: tables of the experiments that a report's points belong to."""

from __future__ import annotations

from specdec.analysis import Record
from specdec.report import paper
from specdec.report.content import Content
from specdec.report.paper import PAPER, Row
from specdec.report.tables import NONE, Cell, Column, Table, number

_CAPTION = (
    "The paper: A100-80GB, float16, Spec-Bench (arXiv 2510.22876). Ours: the pair, data and machine of this report."
)
_METRICS = {  # heading, pattern, scale
    "exact_match": ("exact %", ".1f", 100),
    "partial_match": ("partial %", ".1f", 100),
    "tokens_per_s": ("tokens/s", ".1f", 1),
    "served_tokens_per_s": ("tokens/s", ".1f", 1),
    "num_verify_calls": ("verify calls", ",.0f", 1),
    "verify_s_per_call": ("ms per verify", ".1f", 1000),
    "verify_share": ("verify %", ".1f", 100),
    "draft_share": ("draft %", ".1f", 100),
    "alignment_overhead": ("align %", ".1f", 100),
    "acceptance_rate": ("acceptance", ".2f", 1),
    "grouping_rate": ("grouped %", ".0f", 100),
    "speedup_vs_own_batch_1": ("over own batch 1", ".2f", 1),
    "latency_s.p50": ("p50 s", ".2f", 1),
    "latency_s.p90": ("p90 s", ".2f", 1),
    "latency_s.p99": ("p99 s", ".2f", 1),
}


def paper_tables(content: Content) -> list[Table]:
    """One table per experiment of the paper that a finished point belongs to."""
    tables = []
    for experiment, published in PAPER.items():
        ours = [point for group in content.groups if group.experiment == experiment for point in group.done]
        if ours:
            tables.append(_table(content, experiment, published, ours))
    return tables


def _table(content: Content, experiment: str, published: list[Row], ours: list[Record]) -> Table:
    """A row per place of the paper and point of ours that stands there; columns per metric, theirs before ours."""
    metrics = list(dict.fromkeys(row["metric"] for row in published))
    pairs = _pairs(published, ours)
    columns = [_column("method", True), _column("pair", True), _column("batch")]
    columns += [_column("prompt lengths", True)] if any("lengths" in row for row in published) else []
    for metric in metrics:
        heading = _METRICS.get(metric, (metric,))[0]
        columns += [_column(f"{heading}, paper{f' {pair}' if pair else ''}") for pair in pairs]
        columns.append(_column(f"{heading}, ours"))
    rows = []
    for place in dict.fromkeys(map(_place, published)):
        theirs = {(row["metric"], row["pair"]): row for row in published if _place(row) == place}
        standing: list[Record | None] = [point for point in ours if _stands(point, *place)]
        for point in standing or [None]:
            cells = _heads(point, *place)
            for metric in metrics:
                cells += [_published(theirs.get((metric, pair)), metric) for pair in pairs]
                cells.append(_own(content, ours, point, metric) if point else NONE)
            rows.append(cells)
    return Table(experiment.replace("_", " ").replace("paper ", "Paper: "), _CAPTION, columns, rows)


def _place(row: Row) -> tuple[str, int, str | None]:
    return row["method"], row["batch"], row.get("lengths")


def _stands(point: Record, method: str, batch: int, lengths: str | None) -> bool:
    """Whether a point is where a row of the paper is: its method, batch size and, where it says so, kind of lengths."""
    same_lengths = lengths is None or lengths == point.get("lengths")
    return bool(point["scheduler"] == method and point["batch"] == batch and same_lengths)


def _heads(point: Record | None, method: str, batch: int, lengths: str | None) -> list[Cell]:
    names = [Cell(point["method"] if point else method), Cell(point["pair"] if point else "-")]
    return [*names, Cell(str(batch), "", batch), *([Cell(lengths)] if lengths else [])]


def _pairs(published: list[Row], ours: list[Record]) -> list[str | None]:
    """The paper's pairs that are ours too; all of them where none is."""
    all_pairs = list(dict.fromkeys(row["pair"] for row in published))
    return [pair for pair in all_pairs if pair in {point["pair"] for point in ours}] or all_pairs


def _published(row: Row | None, metric: str) -> Cell:
    if row is None:
        return NONE
    _, pattern, scale = _METRICS.get(metric, (metric, "g", 1))
    cell = number(row["value"], pattern, None, scale)
    return Cell(f"about {cell.text}", "", cell.value) if row.get("approximate") else cell


def _own(content: Content, ours: list[Record], point: Record, metric: str) -> Cell:
    _, pattern, scale = _METRICS.get(metric, (metric, "g", 1))
    if metric == "speedup_vs_own_batch_1":
        same = ("label", "method", "pair", "data")
        alone = [p["tokens_per_s"] for p in ours if p["batch"] == 1 and all(p[key] == point[key] for key in same)]
        return number(point["tokens_per_s"] / alone[0] if alone else None, pattern)
    value = point[metric] if metric in point else paper.ours(point, metric)
    return number(value, pattern, content.interval(point, metric), scale)


def _column(heading: str, is_text: bool = False) -> Column:
    return Column(heading, "", lambda content, point: NONE, is_text)
