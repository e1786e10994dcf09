"""Documents of any kind through `datasets`: local text, JSONL and Parquet files, and data sets of the Hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from glob import glob
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from specdec.core.questions import Message, checked_messages
from specdec.core.text_files import check_text
from specdec.errors import DataError
from specdec.training import TrainingError
from specdec.training.corpus_config import CorpusConfig

BUILDERS = {"text": "text", "jsonl": "json", "parquet": "parquet"}
SOURCES = ("python", *BUILDERS, "hub")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip", ".tar", ".7z")  # `datasets` unpacks them
ARCHIVES = (".zip", ".tar", ".7z")  # which may hold several files
FEW_DOCUMENTS, PIECE_CHARACTERS = 50, 4000
ROWS_AT_ONCE = 64


class Document(NamedTuple):
    """A text, or a conversation whose text is its JSON; the name is a hash, so that the split depends on it alone."""

    name: str
    text: str
    messages: tuple[Message, ...] = ()


def read_documents(cfg: CorpusConfig) -> Iterator[Document]:
    """Every document of a source, one by one: texts, or conversations where the column holds lists of messages.

    Few long documents are cut into pieces at line ends, because otherwise there would be nothing to hold out.

    Raises:
        TrainingError: the source is unknown, cannot be read, lacks the column, or holds no text.
    """
    if cfg.source not in SOURCES:
        raise TrainingError(f"corpus.source={cfg.source} is unknown; choose from {', '.join(SOURCES)}")
    if not cfg.path:
        raise TrainingError(f"corpus.source={cfg.source} needs corpus.path: a file, a folder, a pattern or a Hub name")
    column = "text" if cfg.source == "text" else cfg.column
    with _errors(cfg):
        if cfg.source in ("text", "jsonl"):
            _check_encoding(_files(cfg))
        found = False
        for document in _conversations(cfg, column) if _holds_lists(cfg, column) else _texts(cfg, column):
            found = True
            yield document
        if not found:
            raise TrainingError(f"corpus.path={cfg.path} holds no text in column {column}")


def _holds_lists(cfg: CorpusConfig, column: str) -> bool:
    return cfg.source != "text" and isinstance(next(filter(None, _values(cfg, column)), None), list)


def _texts(cfg: CorpusConfig, column: str) -> Iterator[Document]:
    if cfg.source == "text" and (files := _lines_of_few(cfg)) is not None:
        texts: Iterable[str] = (piece for lines in files for piece in pieces(lines))
    else:
        few = len(list(islice(_filled(cfg, column), FEW_DOCUMENTS))) < FEW_DOCUMENTS
        texts = _filled(cfg, column)
        if few:
            texts = (piece for text in texts for piece in pieces(text.splitlines(keepends=True)))
    for text in texts:
        yield Document(hashlib.sha256(text.encode()).hexdigest(), text)


def _filled(cfg: CorpusConfig, column: str) -> Iterator[str]:
    """The texts that hold anything but spaces."""
    for number, value in enumerate(_values(cfg, column), 1):
        if isinstance(value, list):
            raise TrainingError(
                f"corpus.column={cfg.column}: row {number} of {cfg.path} is a list, others are texts: give "
                "conversations and texts as parts of a mixture (corpus.also)"
            )
        if isinstance(value, str) and value.strip():
            yield value


def _conversations(cfg: CorpusConfig, column: str) -> Iterator[Document]:
    """Checked conversations that ask something; empty ones are left out.

    Raises:
        TrainingError: a row holds anything else; it is named.
    """
    for number, value in enumerate(_values(cfg, column), 1):
        if not value:
            continue
        try:
            messages = checked_messages(value)
        except ValueError as error:
            raise TrainingError(f"corpus.column={cfg.column}: row {number} of {cfg.path}: {error}") from error
        text = json.dumps(messages, ensure_ascii=False)
        yield Document(hashlib.sha256(text.encode()).hexdigest(), text, messages)


def pieces(lines: Iterable[str]) -> Iterator[str]:
    """A text's lines in parts of about PIECE_CHARACTERS."""
    part, size = list[str](), 0
    for line in lines:
        part.append(line)
        size += len(line)
        if size >= PIECE_CHARACTERS:
            yield "".join(part)
            part, size = [], 0
    if "".join(part).strip():
        yield "".join(part)


def _files(cfg: CorpusConfig) -> str:
    """The pattern of a source's files."""
    assert cfg.path is not None
    path = Path(cfg.path).expanduser()
    return str(path / "*") if path.is_dir() else str(path)


def _lines_of_few(cfg: CorpusConfig) -> Iterator[Iterator[str]] | None:
    """The lines of each text file, if there are so few that they are cut into pieces; otherwise None.

    `datasets` would hold each of them in memory.
    """
    names = [name for name in sorted(glob(_files(cfg))) if Path(name).is_file()]
    if not 0 < len(names) < FEW_DOCUMENTS or any(name.endswith(ARCHIVES) for name in names):
        return None

    def lines(name: str) -> Iterator[str]:
        with fsspec.open(name, "rt", encoding="utf-8-sig", compression="infer") as stream:
            yield from stream

    return (lines(name) for name in names)


def _check_encoding(files: str) -> None:
    """Refuse files in other encodings, which `datasets` would misread, or refuse without naming file and line."""
    for name in sorted(glob(files)):
        path = Path(name)
        if path.is_file() and path.suffix not in COMPRESSED:
            check_text(path)


@contextmanager
def _errors(cfg: CorpusConfig) -> Iterator[None]:
    """What reading raises, as one line."""
    try:
        yield
    except (TrainingError, GeneratorExit):
        raise
    except DataError as error:
        raise TrainingError(f"corpus.source={cfg.source}: {error}") from error
    except Exception as error:  # whatever a back end of datasets raises
        lines = str(error.__cause__ or error).splitlines()
        reason = next((line.strip() for line in lines if line.strip()), type(error).__name__)
        raise TrainingError(f"corpus.path={cfg.path} cannot be loaded as {cfg.source} [{reason}]") from error


def _values(cfg: CorpusConfig, column: str) -> Iterator[Any]:
    """The values of the column that holds the text: local files are read in parts, a data set of the Hub is mapped."""
    from datasets.load import load_dataset
    from datasets.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    assert cfg.path is not None
    if cfg.source == "hub":
        rows: Any = load_dataset(cfg.path, split=cfg.split)
    else:
        options: dict[str, Any] = {}
        if cfg.source == "text":  # without the byte order mark
            options = {"sample_by": "document", "encoding": "utf-8-sig"}
        rows = load_dataset(BUILDERS[cfg.source], data_files=_files(cfg), split="train", streaming=True, **options)
    names = rows.column_names or list(next(iter(rows), {}))  # of streamed rows they may not be known
    if column not in names:
        raise TrainingError(f"corpus.column={column} is no column of {cfg.path}; there are {', '.join(names)}")
    for batch in rows.select_columns([column]).iter(ROWS_AT_ONCE):
        yield from batch[column]
