"""Settings of what is read: corpora, their parts, and questions that a target writes itself. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from specdec.core.settings import setting


@dataclass
class PartConfig:
    """A further part of a corpus, beside the first; what is not here is as for the first."""

    source: str = "jsonl"
    root: str | None = None
    path: str | None = None
    column: str = "text"
    split: str = "train"
    max_files: int | None = None
    share: float = 0.5


@dataclass
class CorpusConfig:
    """Which texts are read, and which of them are held out."""

    source: str = setting(
        "python",
        "python (sources below root), text, jsonl, parquet (local files), hub (a data set's name), target (questions "
        "that the frozen target writes itself)",
    )
    root: str | None = setting(None, "python: the folder; None: the running Python's standard library")
    path: str | None = setting(None, "text, jsonl, parquet: file, folder or pattern; hub: the name")
    column: str = setting(
        "text", "jsonl, parquet, hub: the column that holds the text, or conversations (lists of role and content)"
    )
    split: str = setting("train", "hub: the split")
    exclude: list[str] = setting(list, "path prefixes below root")
    min_bytes: int = 300
    max_bytes: int = 400_000
    max_digit_share: float = setting(0.2, "share of digits above which a file is a table, not a program")
    heldout_percent: int = setting(4, "chosen by a hash of the path: the same files on every machine")
    max_files: int | None = setting(None, "rehearsals: at most this many training files")
    also: list[PartConfig] = setting(
        list, "further sources of a mixture, each with its share of what is drawn: [{source, path, column, share}]"
    )


@dataclass
class QuestionsConfig:
    """Users' turns that the frozen target writes itself, for `corpus.source=target`."""

    num: int = setting(2000, "different questions, held-out ones included")
    temperature: float = 1.0
    top_p: float = 0.9
    max_tokens: int = setting(96, "longer turns are left out")
    batch: int = 64
