"""The result as a table of promises kept and broken, and the smallest case that breaks each."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from specdec.conformance.promises import PromiseFinding

MAX_CASE = 1200  # characters of a case that are printed


def print_report(title: str, findings: list[PromiseFinding], console: Console | None = None) -> None:
    """One line per promise; then, for each broken one, how it showed and the smallest case found."""
    console = console or Console()
    table = Table(title=title, title_justify="left")
    table.add_column("promise", no_wrap=True)
    table.add_column("what is promised")
    table.add_column("cases", justify="right")
    table.add_column("result", no_wrap=True)
    for finding in findings:
        result = Text("kept", "green") if finding.kept else Text(f"BROKEN ({finding.num_broken})", "bold red")
        if finding.kept and not finding.claimed:
            result = Text("not claimed")
        table.add_row(Text(finding.promise), Text(finding.text), str(finding.num_cases), result)
    console.print(table)
    for line in describe(findings):
        console.print(Text(line))


def describe(findings: list[PromiseFinding]) -> list[str]:
    """Plain text on every broken promise."""
    lines = []
    for finding in findings:
        if not finding.kept:
            case = str(finding.smallest)
            case = case if len(case) <= MAX_CASE else case[:MAX_CASE] + " ..."
            lines += [f"{finding.promise}: {finding.detail}", f"  smallest case found: {case}"]
    return lines
