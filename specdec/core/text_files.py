"""Text files of users: UTF-8, or refused with file and line. No encoding is guessed. Imports no torch.

A file in another encoding would otherwise be read with wrong characters, and the run would be exact on texts that the
user does not have. A UTF-8 byte order mark is dropped: it is not part of the text.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from specdec.errors import DataError

MOST_NAMED = 10  # problems that one message lists; the others are counted
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark is its beginning
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
    b"\x1f\x8b": "a gzip file",
    b"PK\x03\x04": "a zip file",
    b"PAR1": "a Parquet file",
}
_SNIFFED_BYTES = 4096  # enough to recognise UTF-16 and UTF-32 without a mark, by their many zero bytes
_MANY_ZEROS = 0.3


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its line break: its text, or what is wrong with its bytes."""

    number: int  # from 1
    text: str
    problem: str | None = None


def text_lines(path: Path) -> Iterator[Line]:
    """The lines of a file, including those that are not UTF-8.

    Raises:
        DataError: the file as a whole is not UTF-8 text. OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        if (encoding := _other_format(stream.read(_SNIFFED_BYTES))) is not None:
            raise DataError(f"{path}: it looks like {encoding}; save the file as UTF-8")
        stream.seek(0)
        number = 0
        for content in stream:
            if number == 0:
                content = content.removeprefix(codecs.BOM_UTF8)
            for line in content.removesuffix(b"\n").removesuffix(b"\r").split(b"\r"):
                number += 1
                yield _decoded(number, line)


def _decoded(number: int, line: bytes) -> Line:
    try:
        return Line(number, line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Line(number, "", f"byte 0x{line[error.start]:02x} at position {error.start + 1} is not UTF-8")


def check_text(path: Path) -> None:
    """Refuse a file that is not UTF-8.

    Raises:
        DataError: naming file and lines. OSError: it cannot be read.
    """
    wrong = [f"line {line.number}: {line.problem}" for line in text_lines(path) if line.problem]
    if wrong:
        raise DataError(f"{path}: {listed(wrong)}; save the file as UTF-8")


def read_text(path: Path) -> str:
    """The text of a file, with its own line breaks.

    Raises:
        DataError: it is not UTF-8; the message names file and lines. OSError: it cannot be read.
    """
    check_text(path)
    return path.read_bytes().removeprefix(codecs.BOM_UTF8).decode("utf-8")


def _other_format(head: bytes) -> str | None:
    """The format other than UTF-8 text that a file's first bytes show, if any."""
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    num_full = sum(head[place::2].count(0) > _MANY_ZEROS * len(head[::2]) for place in (0, 1))
    return (None, "UTF-16 without a byte order mark", "UTF-32 without a byte order mark")[num_full]


def listed(problems: Iterable[str]) -> str:
    """The first few problems in one line, and how many more there are."""
    found = list(problems)
    more = f"; and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return "; ".join(found[:MOST_NAMED]) + more


def lone_surrogate(text: str) -> str | None:
    """The problem with a text that holds half of a surrogate pair: JSON can escape it, but no tokenizer accepts it."""
    found = re.search("[\ud800-\udfff]", text)
    return None if found is None else f"a lone surrogate (\\u{ord(found[0]):04x}) at character {found.start() + 1}"
