"""Where in a text a prompt may start: in Python sources by kind, in prose at any line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from specdec.training.corpus import SourceFile
from specdec.training.records import ArrayWriter

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


class Starts:
    """The places of one kind, in a file that vanishes with the process: (number of the file, offset in characters)."""

    def __init__(self, files: Sequence[SourceFile], path: Path) -> None:
        self.files, self._pairs_N2 = files, np.load(path, mmap_mode="r").reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._pairs_N2)

    def places(self, indices: Any) -> list[tuple[int, int]]:
        """The number of the file and the offset of some starts."""
        return [(number, offset) for number, offset in self._pairs_N2[indices].tolist()]

    def text(self, place: tuple[int, int], num_characters: int) -> str:
        """The text that begins at a place."""
        number, offset = place
        return self.files[number].text[offset : offset + num_characters]


def starts_by_kind(files: Sequence[SourceFile], is_code: bool, near: Path | None = None) -> dict[str, Starts]:
    """All starts in the files, by kind; only kinds that occur. Prose has one kind, "text".

    Args:
        near: the folder on whose disk they are written; None: the system's temporary files.
    """
    kinds = KINDS if is_code else ("text",)
    with TemporaryDirectory(dir=near, prefix=".scratch-") as folder:
        writers = {kind: ArrayWriter(Path(folder) / f"{kind}.npy", np.uint32) for kind in kinds}
        for number, file in enumerate(files):
            found: dict[str, list[int]] = {kind: [] for kind in kinds}
            for kind, offset in find_starts(file.text) if is_code else line_starts(file.text):
                found[kind] += (number, offset)
            for kind, pairs in found.items():
                writers[kind].append(pairs)
        for writer in writers.values():
            writer.close()
        return {kind: Starts(files, Path(folder) / f"{kind}.npy") for kind in kinds if writers[kind].length}


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
