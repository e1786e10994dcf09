"""The text, split into training and held-out files by a stable hash: Python sources under a root, or any documents.

All of it is written to a folder once, and read from there file by file: it may be larger than memory.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import shutil
import sysconfig
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from specdec.core.files import write_json
from specdec.core.questions import Message
from specdec.training import TrainingError
from specdec.training.corpus_config import CorpusConfig
from specdec.training.documents import Document, read_documents
from specdec.training.records import Records, RecordsWriter
from specdec.training.shares import check_shares

SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__"})
SPLITS = ("train", "heldout")
_RECORD = "corpus.json"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file: `path` relative to the corpus root with forward slashes, and its text."""

    path: str
    text: str
    messages: tuple[Message, ...] = ()  # if it is a conversation


class Documents(Sequence[SourceFile]):
    """One side of a corpus, read from disk file by file."""

    def __init__(self, folder: Path, split: str, is_chat: bool) -> None:
        self._names, self._texts = Records(folder / f"{split}.names"), Records(folder / f"{split}.texts")
        self._is_chat = is_chat

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, index: int) -> SourceFile: ...
    @overload
    def __getitem__(self, index: slice) -> list[SourceFile]: ...
    def __getitem__(self, index: int | slice) -> SourceFile | list[SourceFile]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        text = self._texts[index].decode()
        messages = tuple(json.loads(text)) if self._is_chat else ()
        return SourceFile(self._names[index].decode(), text, messages)


@dataclass(frozen=True)
class Corpus:
    """Training and held-out files: of Python sources each sorted by path, of documents in their order."""

    train: Sequence[SourceFile]
    heldout: Sequence[SourceFile]
    is_code: bool = True  # prompts start at definitions, comments and the like; otherwise at any line
    sha256: str = ""  # over the paths and texts of all files, in order
    folder: Path | None = None  # where they are; None: in memory
    share: float = 1.0  # of what is drawn from a mixture
    also: tuple[Corpus, ...] = ()  # the other parts of a mixture

    @property
    def is_chat(self) -> bool:
        """Whether it consists of conversations, whose prompts are what comes before an answer."""
        return bool(self.train[0].messages)

    @property
    def parts(self) -> tuple[Corpus, ...]:
        """The corpora of a mixture, this one first."""
        return (self, *self.also)

    @property
    def shares(self) -> list[float]:
        """Of each part, in what is drawn."""
        return [part.share for part in self.parts]


def is_heldout(path: str, heldout_percent: int) -> bool:
    """Whether the file at this relative path is held out; depends only on the path."""
    bucket = int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big") % 100
    return bucket < heldout_percent


def read_corpus(cfg: CorpusConfig, folder: Path | None = None) -> Corpus:
    """Read the files that the config admits.

    Args:
        folder: where they are written and kept; None: temporary files, as long as the corpus is in use.

    Raises:
        TrainingError: either side of the split is empty, or a source cannot be read.
    """
    if folder is not None:
        write_corpus(cfg, folder)
        return open_corpus(folder)
    scratch = Path(tempfile.mkdtemp(prefix="specdec-corpus-"))
    try:
        write_corpus(cfg, scratch)
        corpus = open_corpus(scratch)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    weakref.finalize(corpus, shutil.rmtree, scratch, ignore_errors=True)
    return corpus


def write_corpus(cfg: CorpusConfig, folder: Path) -> dict[str, Any]:
    """Write the corpus and the further parts of a mixture to a folder; returns their numbers of files and bytes."""
    check_shares([part.share for part in cfg.also], "corpus.also")
    found = [_write_part(cfg, folder / "0", 1 - sum(part.share for part in cfg.also))]
    for number, part in enumerate(cfg.also, 1):
        own = replace(
            cfg,
            also=[],
            **{name: getattr(part, name) for name in ("source", "root", "path", "column", "split", "max_files")},
        )
        found.append(_write_part(own, folder / str(number), part.share))
    write_json(folder / _RECORD, found)
    return {"parts": [{key: part[key] for key in ("train", "heldout", "bytes", "is_chat")} for part in found]}


def open_corpus(folder: Path) -> Corpus:
    """What `write_corpus` wrote."""
    found = []
    for number, part in enumerate(json.loads((folder / _RECORD).read_text())):
        place = folder / str(number)
        train, heldout = (Documents(place, split, part["is_chat"]) for split in SPLITS)
        found.append(Corpus(train, heldout, part["is_code"], part["sha256"], place, part["share"]))
    return replace(found[0], also=tuple(found[1:]))


def _write_part(cfg: CorpusConfig, folder: Path, share: float) -> dict[str, Any]:
    if cfg.source == "python":
        root = Path(cfg.root) if cfg.root else Path(sysconfig.get_path("stdlib"))
        if not root.is_dir():
            raise TrainingError(f"corpus.root={root} is not a folder")
        setting, files = f"corpus.root={root}", _sources(root, cfg)
    else:
        setting, files = f"corpus.path={cfg.path}", read_documents(cfg)
    folder.mkdir(parents=True, exist_ok=True)
    writers = {split: [RecordsWriter(folder / f"{split}.{kind}") for kind in ("names", "texts")] for split in SPLITS}
    digest, num_bytes, num_train, is_chat = hashlib.sha256(), 0, 0, False
    for name, text, messages in files:
        split = "heldout" if is_heldout(name, cfg.heldout_percent) else "train"
        num_train += split == "train"
        if split == "train" and cfg.max_files is not None and num_train > cfg.max_files:
            continue  # on to the held-out files: prompts need the variety of all of them
        is_chat = bool(messages)
        parts = name.encode(), text.encode()
        digest.update(parts[0] + b"\0" + parts[1] + b"\0")
        num_bytes += len(parts[1])
        for writer, part in zip(writers[split], parts, strict=True):
            writer.append(part)
    for writer in (writer for pair in writers.values() for writer in pair):
        writer.close()
    sizes = [len(writers[split][0]) for split in SPLITS]
    if not all(sizes):
        found = f"{sizes[0]} training and {sizes[1]} held-out files"
        remedy = "change corpus.heldout_percent, or give more documents"
        raise TrainingError(f"{setting} yields {found} after filtering; both must be at least 1: {remedy}")
    figures = {"train": sizes[0], "heldout": sizes[1], "bytes": num_bytes, "sha256": digest.hexdigest()}
    return {**figures, "is_chat": is_chat, "is_code": cfg.source == "python", "share": share}


def _sources(root: Path, cfg: CorpusConfig) -> Iterator[Document]:
    """The Python sources below a folder that are admitted, sorted by path."""
    for path in sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py")):
        if (text := _read(root, path, cfg)) is not None:
            yield Document(path, text)


def _read(root: Path, path: str, cfg: CorpusConfig) -> str | None:
    """The file's text if it is readable, hand-written and of an admitted size, otherwise None."""
    if SKIPPED_FOLDERS.intersection(path.split("/")) or path.startswith(tuple(cfg.exclude)):
        return None
    raw = (root / path).read_bytes()
    if not cfg.min_bytes <= len(raw) <= cfg.max_bytes:
        return None
    try:
        text = raw.removeprefix(codecs.BOM_UTF8).decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:  # the standard library tests source encodings
        return None
    num_digits = sum(character.isdigit() for character in text)
    is_table = num_digits > cfg.max_digit_share * len(text)
    is_ascii = sum(character.isascii() for character in text) > 0.98 * len(text)
    return text if is_ascii and not is_table else None
