"""The texts of a finished point's first rows, for the console (``show_text=true``)."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from specdec.core.files import read_lines

ROWS = 3
_CHARACTERS = 600  # of a text


def print_texts(folder: Path) -> None:
    """Print the first rows of a point's folder, each under a line that names it."""
    console = Console(highlight=False)
    for row in islice(read_lines(folder / "samples.jsonl"), ROWS):
        turn = f", turn {row['turn'] + 1}" if "turn" in row else ""
        title = f"question {row['question_id']} ({row['category']}{turn}): {len(row['output_ids'])} tokens"
        console.print(Rule(Text(title), align="left", style="dim"))
        console.print(Text(_shown(row["text"])), soft_wrap=True)


def _shown(text: str) -> str:
    """A text without characters that a terminal would act on, cut where it is long."""
    kept = "".join(symbol if symbol.isprintable() or symbol in "\n\t" else ascii(symbol)[1:-1] for symbol in text)
    return kept if len(kept) <= _CHARACTERS else f"{kept[:_CHARACTERS]} ..."
