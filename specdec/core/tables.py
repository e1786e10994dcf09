"""Tables as data, and the one writer of Markdown and LaTeX. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Interval = tuple[float, float]
_ESCAPES = {
    **{character: "\\" + character for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",  # these three are other characters in LaTeX's default font encoding
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One entry of a table: its text, its interval or a remark, a value to sort by, and whether it is good or bad."""

    text: str
    spread: str = ""
    value: float | str = ""
    tone: str = ""  # good, warn or bad where the entry is a verdict


EMPTY = Cell("-")


@dataclass(frozen=True, slots=True)
class Column:
    """One figure: its heading in tables, its key in records, and its format."""

    heading: str
    key: str  # of a flat record, as in latency_s.p99
    pattern: str = ""  # of `format`; without one the column holds text
    meaning: str = ""
    scale: float = 1.0
    unit: str = ""  # follows every number
    per: str = ""  # key of the figure that this one is divided by
    quotient: str = ""  # name of that quotient
    shows_interval: bool = False  # in Markdown and LaTeX too

    @property
    def name(self) -> str:
        """Its name in `specdec.core.columns`."""
        return self.quotient or self.key

    @property
    def is_text(self) -> bool:
        """Whether it holds text, which is aligned to the left."""
        return not self.pattern

    def value(self, record: Mapping[str, Any]) -> Any:
        """The figure of a record; None where it has none."""
        value = record.get(self.key)
        if not self.per or value is None:
            return value
        return value / record[self.per] if record.get(self.per) else None

    def text(self, value: Any) -> str:
        """A value in the column's format."""
        if value is None:
            return "" if self.is_text else "-"
        if self.is_text or isinstance(value, str):
            return str(value)
        return f"{value * self.scale if self.scale != 1 else value:{self.pattern}}{self.unit}"  # integers stay integers

    def cell(self, record: Mapping[str, Any], interval: Interval | None = None) -> Cell:
        """The figure of a record and its interval, in the same format."""
        value = self.value(record)
        spread = ""
        if interval is not None and value is not None and interval[0] < interval[1]:
            spread = "[{}, {}]".format(*(f"{end * self.scale:{self.pattern}}" for end in interval))
        return Cell(self.text(value), spread, value if isinstance(value, int | float) else str(value or ""))


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows of cells; the caption says what all rows share."""

    columns: list[Column]
    rows: list[list[Cell]]
    title: str = ""
    caption: str = ""


def record_table(columns: Sequence[Column], records: Sequence[Mapping[str, Any]]) -> Table:
    """A row per record."""
    return Table(list(columns), [[column.cell(record) for column in columns] for record in records])


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]], num_texts: int = 1) -> Table:
    """A table of formatted texts.

    Args:
        num_texts: columns from the left that hold words; the others hold numbers and are aligned to the right.
    """
    columns = [Column(heading, heading, "" if at < num_texts else "g") for at, heading in enumerate(headings)]
    return Table(columns, [[Cell(text) for text in row] for row in rows])


def markdown(table: Table) -> str:
    """The table in GitHub's Markdown; an interval follows its figure."""
    lines = [[column.heading for column in table.columns]]
    lines.append(["---" if column.is_text else "---:" for column in table.columns])
    for row in table.rows:
        lines.append([" ".join(_parts(cell, column)) for cell, column in zip(row, table.columns, strict=True)])
    safe = ([text.replace("|", r"\|").replace("\n", " ") for text in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in safe)


def latex(table: Table, spaced: bool = False) -> str:
    """The table as a ``tabular``; needs the package booktabs.

    Args:
        spaced: add space between rows with different first cells.
    """
    alignment = "".join("l" if column.is_text else "r" for column in table.columns)
    lines = [r"\toprule", " & ".join(escaped(column.heading) for column in table.columns) + r" \\", r"\midrule"]
    for at, row in enumerate(table.rows):
        if spaced and at and row[0] != table.rows[at - 1][0]:
            lines.append(r"\addlinespace")
        parts = (_parts(cell, column) for cell, column in zip(row, table.columns, strict=True))
        lines.append(" & ".join(_latex_cell(*cell) for cell in parts) + r" \\")
    ruled = "\n".join([*lines, r"\bottomrule"])
    return f"\\begin{{tabular}}{{{alignment}}}\n{ruled}\n\\end{{tabular}}\n"


def latex_float(table: Table) -> str:
    """The table as a ``table`` with its caption, shrunk to the width of the text; also needs the package graphicx."""
    said = table.caption if table.caption.startswith(table.title) else f"{table.title}. {table.caption}"
    caption, label = escaped(said.strip(". ")) + ".", re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-")
    return (
        "% needs \\usepackage{booktabs,graphicx}\n\\begin{table}\n\\centering\n"
        f"\\caption{{{caption}}}\n\\label{{tab:{label}}}\n"
        f"\\resizebox{{\\linewidth}}{{!}}{{%\n{latex(table)}}}\n\\end{{table}}\n"
    )


def escaped(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    return "".join(_ESCAPES.get(character, character) for character in text)


def _parts(cell: Cell, column: Column) -> list[str]:
    return [cell.text, cell.spread] if cell.spread and column.shows_interval else [cell.text]


def _latex_cell(text: str, spread: str = "") -> str:
    shown = escaped("--" if text == "-" else text)
    return f"{shown} {{\\scriptsize {escaped(spread)}}}" if spread else shown
