"""The table of a group of points, and all tables of a report as Markdown, LaTeX and CSV."""

from __future__ import annotations

import json

from specdec.core.columns import columns
from specdec.core.siblings import CHAIN
from specdec.core.tables import Cell, Table, latex_float, markdown
from specdec.report.content import Group, ReportContent
from specdec.report.published import published_tables

SHARED = (
    *("pair", "data", "num_prompts", "max_new_tokens", "temperature", "dtype", "weights"),
    *("gamma", "drafter", "tree", "verifier"),
)
COLUMNS = columns(
    *("method", "label", "pair", "data", "dtype", "batch", "gamma", "num_exact", "tokens_per_s", "speedup_vs_ar"),
    *("acceptance_rate", "nodes_per_round", "mean_acceptance_length", "draft_share", "verify_share", "align_share"),
    *("grouping_rate", "latency_s.p50", "latency_s.p99", "served_tokens_per_s", "token_s.p99", "wait_rounds.p99"),
    *("queue_length.mean", "ttft_s.p50", "peak_memory_bytes", "partial_match"),
)
_ONLY_IF_DIFFERENT = ("label", "pair", "data", "dtype", "gamma", "partial_match")
_FIRST_OF_CSV = ("label", "method", "batch", "status", "tokens_per_s", "speedup_vs_ar", "exact_match")


def point_table(content: ReportContent, group: Group) -> Table:
    """A row per point; without columns that are empty, or that the caption states for all rows."""
    kept, cells = [], []
    for column in COLUMNS:
        own = [column.cell(point, content.interval(point, column.name)) for point in group.points]
        if _is_worth_showing(column.name, own, group):
            kept.append(column)
            cells.append(own)
    rows = [list(row) for row in zip(*cells, strict=True)]
    return Table(kept, rows, group.title, caption(group))


def caption(group: Group) -> str:
    """What all finished points of a group share."""
    shared = {key: {str(point[key]) for point in group.done if point.get(key) is not None} for key in SHARED}
    return ", ".join(f"{key.replace('_', ' ')} {min(values)}" for key, values in shared.items() if len(values) == 1)


def _is_worth_showing(name: str, cells: list[Cell], group: Group) -> bool:
    """Whether a column says something; that gamma is 0 in plain decoding does not count."""
    if name == "nodes_per_round" and all(point.get("tree", CHAIN) == CHAIN for point in group.points):
        return False
    texts = {
        cell.text
        for cell, point in zip(cells, group.points, strict=True)
        if name != "gamma" or point.get("drafter") != "none"
    }
    return len(texts - {"-", ""}) > (name in _ONLY_IF_DIFFERENT)


def all_tables(content: ReportContent) -> list[Table]:
    """The tables of all groups, then published figures beside ours."""
    return [point_table(content, group) for group in content.groups] + published_tables(content)


def to_markdown(content: ReportContent) -> str:
    """All tables, each under its title, then what failed."""
    parts = [f"## {table.title}\n\n{table.caption}\n\n{markdown(table)}" for table in all_tables(content)]
    if content.failed:
        failures = [f"- {' '.join(p.get('overrides') or [p['method']])}: {p['error']}" for p in content.failed]
        parts.append("## Failed points\n\n" + "\n".join(failures) + "\n")
    return "\n".join(parts)


def to_latex(content: ReportContent) -> str:
    """All tables; needs the packages booktabs and graphicx."""
    return "\n".join(map(latex_float, all_tables(content)))


def to_csv(content: ReportContent) -> str:
    """A row per point with every key there is; intervals as KEY_low and KEY_high, lists as JSON."""
    import pandas as pd

    rows = []
    for point in content.points:
        row = {key: json.dumps(value) if isinstance(value, list) else value for key, value in point.items()}
        for key in list(row):
            if interval := content.interval(point, key):
                row[f"{key}_low"], row[f"{key}_high"] = interval
        rows.append({key: row.get(key) for key in _FIRST_OF_CSV} | row)
    text: str = pd.DataFrame(rows, dtype=object).to_csv(index=False, lineterminator="\n")
    return text
