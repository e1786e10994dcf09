"""Where in a text a prompt may start: in Python sources by kind, in prose at any line."""

from __future__ import annotations

import re
from collections.abc import Iterator

from specdec.training.corpus import SourceFile

_PATTERNS: dict[str, re.Pattern[str]] = {
    "test": re.compile(r"\s*def test"),
    "function": re.compile(r"\s*(async )?def "),
    "class": re.compile(r"\s*class \w+"),
    "import": re.compile(r"(import|from) \w+"),
    "docstring": re.compile(r'\s*[rR]?"""\w+ \w+'),
    "comment": re.compile(r"\s*# [A-Z]\w+ \w+"),
    "statement": re.compile(r"\s+(if|for|while|with|try|return|self\.\w+ =) ?"),
}
"""Kind -> pattern of a line; the first that matches names the kind."""

KINDS = ("head", *_PATTERNS)
PROSE_KINDS = ("docstring", "comment")
Start = tuple[SourceFile, int]
"""A file, and the offset in characters at which a prompt may start."""


def starts_by_kind(files: list[SourceFile], is_code: bool) -> dict[str, list[Start]]:
    """All starts in the files, by kind; only kinds that occur. Prose has one kind, "text"."""
    found: dict[str, list[Start]] = {kind: [] for kind in (KINDS if is_code else ("text",))}
    for file in files:
        for kind, offset in find_starts(file.text) if is_code else line_starts(file.text):
            found[kind].append((file, offset))
    return {kind: starts for kind, starts in found.items() if starts}


def find_starts(text: str) -> Iterator[tuple[str, int]]:
    """(kind, offset) of every line of a Python source that a prompt may start at; its first line is "head"."""
    yield "head", 0
    offset = 0
    for line in text.splitlines(keepends=True):
        kind = next((kind for kind, pattern in _PATTERNS.items() if pattern.match(line)), None)
        if kind and offset:
            yield kind, offset
        offset += len(line)


def line_starts(text: str) -> Iterator[tuple[str, int]]:
    """("text", offset) of the lines that hold anything but spaces."""
    offset = 0
    for line in text.splitlines(keepends=True):
        if line.strip():
            yield "text", offset
        offset += len(line)
