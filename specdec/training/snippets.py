"""Where in a text a prompt may start: in Python sources by kind, in prose at any line."""

from __future__ import annotations

import re
from collections.abc import Iterator

from specdec.training.corpus import SourceFile

# Checked in this order; the first pattern that matches a line names its kind.
_PATTERNS: dict[str, re.Pattern[str]] = {
    "test": re.compile(r"\s*def test"),
    "function": re.compile(r"\s*(async )?def "),
    "class": re.compile(r"\s*class \w+"),
    "import": re.compile(r"(import|from) \w+"),
    "docstring": re.compile(r'\s*[rR]?"""\w+ \w+'),
    "comment": re.compile(r"\s*# [A-Z]\w+ \w+"),
    "statement": re.compile(r"\s+(if|for|while|with|try|return|self\.\w+ =) ?"),
}
KINDS = ("head", *_PATTERNS)
PROSE_KINDS = ("docstring", "comment")


def find_starts(text: str) -> Iterator[tuple[str, int]]:
    """(kind, character offset) of every line that a prompt may start at; the file's first line is "head"."""
    yield "head", 0
    offset = 0
    for line in text.splitlines(keepends=True):
        for kind, pattern in _PATTERNS.items():
            if pattern.match(line):
                if offset:
                    yield kind, offset
                break
        offset += len(line)


def starts_by_kind(files: list[SourceFile], is_code: bool = True) -> dict[str, list[tuple[SourceFile, int]]]:
    """(file, character offset) of all starts, grouped by kind; a kind may have none. Prose has one kind, "text"."""
    if not is_code:
        return {"text": [(file, offset) for file in files for offset in line_starts(file.text)]}
    found: dict[str, list[tuple[SourceFile, int]]] = {kind: [] for kind in KINDS}
    for file in files:
        for kind, offset in find_starts(file.text):
            found[kind].append((file, offset))
    return found


def line_starts(text: str) -> Iterator[int]:
    """Character offsets of the lines that hold anything but spaces."""
    offset = 0
    for line in text.splitlines(keepends=True):
        if line.strip():
            yield offset
        offset += len(line)
