"""The tables of a report as Markdown, LaTeX (booktabs) and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from specdec.report.content import Content
from specdec.report.tables import Cell, Column, Table

_WITH_SPREAD = ("tokens/s", "vs plain", "exact")
"""Columns whose intervals a table on paper has room for; the page and the CSV file have all of them."""
_ESCAPES = {
    **{character: "\\" + character for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def markdown(tables: Sequence[Table], content: Content) -> str:
    """All tables, each under its title, then what failed."""
    parts = [f"## {table.title}\n\n{table.caption}\n\n{markdown_table(table)}" for table in tables]
    if content.failed:
        failures = [f"- {' '.join(p.get('overrides') or [p['method']])}: {p['error']}" for p in content.failed]
        parts.append("## Failed points\n\n" + "\n".join(failures) + "\n")
    return "\n".join(parts)


def markdown_table(table: Table) -> str:
    """One table; intervals stand behind their figures."""
    lines = [[column.heading for column in table.columns]]
    lines.append(["---" if column.is_text else "---:" for column in table.columns])
    for row in table.rows:
        lines.append(
            [_joined(cell, column).replace("|", r"\|") for cell, column in zip(row, table.columns, strict=True)]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(tables: Sequence[Table]) -> str:
    """A ``table`` environment each; needs the packages booktabs and graphicx (wide tables shrink to the line)."""
    return "\n".join(_floating(table) for table in tables)


def latex_table(table: Table) -> str:
    """The ``tabular`` of one table."""
    alignment = "".join("l" if column.is_text else "r" for column in table.columns)
    head = " & ".join(escaped(column.heading) for column in table.columns)
    cells = [[_latex_cell(cell, column) for cell, column in zip(row, table.columns, strict=True)] for row in table.rows]
    body = "\n".join(" & ".join(row) + r" \\" for row in cells)
    ruled = "\n".join([r"\toprule", head + r" \\", r"\midrule", body, r"\bottomrule"])
    return f"\\begin{{tabular}}{{{alignment}}}\n{ruled}\n\\end{{tabular}}\n"


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_ESCAPES.get(character, character) for character in text)


def points_csv(content: Content) -> str:
    """A row per point with every key there is; intervals as KEY_low and KEY_high, lists as JSON."""
    rows = []
    for point in content.points:
        row = {key: json.dumps(value) if isinstance(value, list) else value for key, value in point.items()}
        for key in list(row):
            if interval := content.interval(point, key):
                row[f"{key}_low"], row[f"{key}_high"] = interval
        rows.append(row)
    first = ("label", "method", "batch", "status", "tokens_per_s", "speedup_vs_ar", "exact_match")
    columns = dict.fromkeys([*first, *(key for row in rows for key in row)])
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _floating(table: Table) -> str:
    caption = escaped(f"{table.title}. {table.caption}".strip(". ")) + "."
    return (
        "\\begin{table}\n\\centering\n"
        f"\\caption{{{caption}}}\n\\resizebox{{\\linewidth}}{{!}}{{%\n{latex_table(table)}}}\n\\end{{table}}\n"
    )


def _latex_cell(cell: Cell, column: Column) -> str:
    text = escaped(cell.text if cell.text != "-" else "--")
    spread = _spread(cell, column)
    return f"{text} {{\\scriptsize {escaped(spread)}}}" if spread else text


def _joined(cell: Cell, column: Column) -> str:
    return f"{cell.text} {_spread(cell, column)}".strip()


def _spread(cell: Cell, column: Column) -> str:
    return cell.spread if column.heading in _WITH_SPREAD else ""
