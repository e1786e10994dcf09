"""Where questions come from: a local JSONL file, or what `datasets` can load; broken lines are named.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specdec.assets import local_path
from specdec.core.questions import Question, question_of
from specdec.core.text_files import listed, text_lines
from specdec.errors import DataError

Read = Iterator[tuple[int, Any, str | None]]
"""Number, content and problem of each line or record."""


def read_questions(path: str, split: str, subset: str | None, *, skip_broken: bool) -> tuple[list[Question], list[str]]:
    """The questions of a source in its order, and notes for the user.

    Args:
        path: a file, or a URL, or the Hub name or folder of a dataset, with its ``split`` and ``subset``.

    Raises:
        DataError: it cannot be read; or lines are broken and ``skip_broken`` is not set: they are named.
    """
    file = local_path(path)
    is_file = file.is_file()
    name, kind = (file.name, "line") if is_file else (path, "record")
    questions: list[Question] = []
    broken: list[str] = []
    undecodable = False
    for number, record, problem in _lines(file) if is_file else _records(path, split, subset):
        try:
            if problem:
                undecodable = True
                raise ValueError(problem)
            questions.append(question_of(record, number))
        except ValueError as error:
            broken.append(f"{kind} {number}: {error}")
    if broken and not skip_broken:
        remedy = "save the file as UTF-8" if undecodable else f"fix the {kind}s"
        raise DataError(f"{name} {listed(broken)}; {remedy}, or set data.broken=skip")
    notes = [f"{len(broken)} broken {kind}s of {name} skipped: {listed(broken)}"] if broken else []
    if num_cut := sum(question.cut for question in questions):
        notes.append(f"{num_cut} {kind}s of {name} end with an answer, which is not part of the prompt")
    return questions, notes


def _lines(path: Path) -> Read:
    """Every line that is not empty."""
    for line in text_lines(path):
        if line.problem or line.text.strip():
            yield line.number, line.text, line.problem


def _records(path: str, split: str, subset: str | None) -> Read:
    return ((number, record, None) for number, record in enumerate(_load_dataset(path, split, subset), 1))


def _load_dataset(path: str, split: str, subset: str | None) -> Any:
    from datasets.load import load_dataset

    is_url = "://" in path
    folder = Path(path).expanduser()
    if folder.is_dir():
        path = str(folder)
    elif not is_url and (path.startswith(("/", ".", "~")) or path.endswith((".jsonl", ".json"))):
        raise DataError(f"data.path={path}: no such file")
    try:
        if is_url:
            return list(load_dataset("json", data_files=path, split="train"))
        return list(load_dataset(path, subset, split=split))
    except Exception as error:  # datasets raises what its many back ends raise
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise DataError(f"data.path={path} cannot be loaded: give a local JSONL file [{reason}]") from error
