"""Documents of any kind through `datasets`: local text, JSONL and Parquet files, and data sets of the Hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

from specdec.core.questions import Message, checked_messages
from specdec.core.text_files import check_text
from specdec.errors import DataError
from specdec.training import TrainingError
from specdec.training.config import CorpusConfig

BUILDERS = {"text": "text", "jsonl": "json", "parquet": "parquet"}
SOURCES = ("python", *BUILDERS, "hub")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip", ".tar", ".7z")  # `datasets` unpacks them
FEW_DOCUMENTS, PIECE_CHARACTERS = 50, 4000


class Document(NamedTuple):
    """A text, or a conversation whose text is its JSON; the name is a hash, so that the split depends on it alone."""

    name: str
    text: str
    messages: tuple[Message, ...] = ()


def read_documents(cfg: CorpusConfig) -> list[Document]:
    """Every document of a source: texts, or conversations where the column holds lists of messages.

    Few long documents are cut into pieces at line ends, because otherwise there would be nothing to hold out.

    Raises:
        TrainingError: the source is unknown, cannot be read, lacks the column, or holds no text.
    """
    if cfg.source not in SOURCES:
        raise TrainingError(f"corpus.source={cfg.source} is unknown; choose from {', '.join(SOURCES)}")
    if not cfg.path:
        raise TrainingError(f"corpus.source={cfg.source} needs corpus.path: a file, a folder, a pattern or a Hub name")
    column = "text" if cfg.source == "text" else cfg.column
    values = _load(cfg, column)
    if any(isinstance(value, list) for value in values):
        return _conversations(values, cfg)
    texts = [text for text in values if isinstance(text, str) and text.strip()]
    if not texts:
        raise TrainingError(f"corpus.path={cfg.path} holds no text in column {column}")
    if len(texts) < FEW_DOCUMENTS:
        texts = [piece for text in texts for piece in pieces(text)]
    return [Document(hashlib.sha256(text.encode()).hexdigest(), text) for text in texts]


def _conversations(values: list[Any], cfg: CorpusConfig) -> list[Document]:
    """Checked conversations that ask something; empty ones are left out.

    Raises:
        TrainingError: a row holds anything else; it is named.
    """
    found = []
    for number, value in enumerate(values, 1):
        if not value:
            continue
        try:
            messages = checked_messages(value)
        except ValueError as error:
            raise TrainingError(f"corpus.column={cfg.column}: row {number} of {cfg.path}: {error}") from error
        text = json.dumps(messages, ensure_ascii=False)
        found.append(Document(hashlib.sha256(text.encode()).hexdigest(), text, messages))
    return found


def pieces(text: str) -> Iterator[str]:
    """A text in parts of about PIECE_CHARACTERS that end with a line."""
    part = ""
    for line in text.splitlines(keepends=True):
        part += line
        if len(part) >= PIECE_CHARACTERS:
            yield part
            part = ""
    if part.strip():
        yield part


def _check_encoding(files: str) -> None:
    """Refuse files in other encodings, which `datasets` would misread, or refuse without naming file and line."""
    for name in sorted(glob(files)):
        path = Path(name)
        if path.is_file() and path.suffix not in COMPRESSED:
            check_text(path)


def _texts(rows: Any, cfg: CorpusConfig, column: str) -> list[Any]:
    if column not in rows.column_names:
        raise TrainingError(
            f"corpus.column={column} is no column of {cfg.path}; there are {', '.join(rows.column_names)}"
        )
    return list(rows[column])


def _load(cfg: CorpusConfig, column: str) -> list[Any]:
    """The values of the column that holds the text."""
    from datasets.load import load_dataset
    from datasets.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    assert cfg.path is not None
    try:
        if cfg.source == "hub":
            return _texts(load_dataset(cfg.path, split=cfg.split), cfg, column)
        path = Path(cfg.path).expanduser()
        files = str(path / "*") if path.is_dir() else str(path)
        if cfg.source != "parquet":
            _check_encoding(files)
        options: dict[str, Any] = {}
        if cfg.source == "text":  # without the byte order mark
            options = {"sample_by": "document", "encoding": "utf-8-sig"}
        return _texts(load_dataset(BUILDERS[cfg.source], data_files=files, split="train", **options), cfg, column)
    except TrainingError:
        raise
    except DataError as error:
        raise TrainingError(f"corpus.source={cfg.source}: {error}") from error
    except Exception as error:  # whatever a back end of datasets raises
        lines = str(error.__cause__ or error).splitlines()
        reason = next((line.strip() for line in lines if line.strip()), type(error).__name__)
        raise TrainingError(f"corpus.path={cfg.path} cannot be loaded as {cfg.source} [{reason}]") from error
