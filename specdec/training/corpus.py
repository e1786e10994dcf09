"""The text, split into training and held-out files by a stable hash: Python sources under a root, or any documents."""

from __future__ import annotations

import codecs
import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from specdec.core.questions import Message
from specdec.training import TrainingError
from specdec.training.config import CorpusConfig
from specdec.training.documents import read_documents

SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file: `path` relative to the corpus root with forward slashes, and its text."""

    path: str
    text: str
    messages: tuple[Message, ...] = ()  # if it is a conversation


@dataclass(frozen=True, slots=True)
class Corpus:
    """Training and held-out files, each sorted by path."""

    train: list[SourceFile]
    heldout: list[SourceFile]
    is_code: bool = True  # prompts start at definitions, comments and the like; otherwise at any line

    @property
    def is_chat(self) -> bool:
        """Whether it consists of conversations, whose prompts are what comes before an answer."""
        return any(file.messages for file in self.train)

    @property
    def sha256(self) -> str:
        """Hash over the paths and texts of all files, in order."""
        digest = hashlib.sha256()
        for file in sorted(self.train + self.heldout, key=lambda file: file.path):
            digest.update(f"{file.path}\0{file.text}\0".encode())
        return digest.hexdigest()


def is_heldout(path: str, heldout_percent: int) -> bool:
    """Whether the file at this relative path is held out; depends only on the path."""
    bucket = int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big") % 100
    return bucket < heldout_percent


def read_corpus(cfg: CorpusConfig) -> Corpus:
    """Read the files that the config admits. Raises TrainingError if either side of the split is empty."""
    if cfg.source != "python":
        documents = [SourceFile(*document) for document in read_documents(cfg)]
        return _split(documents, cfg, f"corpus.path={cfg.path}", is_code=False)
    root = Path(cfg.root) if cfg.root else Path(sysconfig.get_path("stdlib"))
    if not root.is_dir():
        raise TrainingError(f"corpus.root={root} is not a folder")
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    files = [file for path in paths if (file := _read(root, path, cfg)) is not None]
    return _split(files, cfg, f"corpus.root={root}", is_code=True)


def _split(files: list[SourceFile], cfg: CorpusConfig, setting: str, is_code: bool) -> Corpus:
    train = [file for file in files if not is_heldout(file.path, cfg.heldout_percent)]
    heldout = [file for file in files if is_heldout(file.path, cfg.heldout_percent)]
    if not train or not heldout:
        sizes = f"{len(train)} training and {len(heldout)} held-out files"
        remedy = "change corpus.heldout_percent, or give more documents"
        raise TrainingError(f"{setting} yields {sizes} after filtering; both must be at least 1: {remedy}")
    return Corpus(train[: cfg.max_files], heldout, is_code)  # all held-out files: prompts need the variety


def _read(root: Path, path: str, cfg: CorpusConfig) -> SourceFile | None:
    """The file if it is readable, hand-written text of an admitted size, otherwise None."""
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
    return SourceFile(path, text) if is_ascii and not is_table else None
