"""The rows of an outputs file: what an engine was given and what it emitted, checked line by line. Imports no torch.

A line is a JSON object with ``prompt_ids`` or ``prompt``, ``output_ids`` or ``output``, and if known ``logprobs`` (of
the emitted tokens) and ``id``. Where ids and text are both given they must be of the same tokenizer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec.core.text_files import listed, lone_surrogate, text_lines
from specdec.errors import DataError

_FORM = "a line needs prompt_ids or prompt, and output_ids or output"


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt and what the engine emitted after it."""

    number: int  # of the line, from 1
    name: str  # its id, or the line's number
    prompt_ids: list[int]
    output_ids: list[int]
    text: str | None = None  # the output, where only its text is known: then output_ids are the tokenizer's
    logprobs: list[float] | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What rows must fit to."""

    vocab_size: int
    context_length: int
    tokenizer: Any = None
    special_tokens: bool = (
        True  # whether the tokenizer's own (such as a first token) are added to prompts given as text
    )
    sampled: bool = False


def read_rows(path: Path, limits: Limits, skip_invalid: bool = False) -> tuple[list[Row], list[str]]:
    """All rows of a file, and what is wrong with the lines that were left out.

    Raises:
        DataError: the file cannot be read, or a line is not a row and ``skip_invalid`` is not set.
    """
    rows: list[Row] = []
    problems: list[str] = []
    try:
        for line in text_lines(path):
            if line.problem is None and not line.text.strip():
                continue
            try:
                if line.problem is not None:
                    raise ValueError(line.problem)
                rows.append(_row(line.text, line.number, limits))
            except ValueError as error:
                problems.append(f"line {line.number}: {error}")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if problems and not skip_invalid:
        raise DataError(f"{path}: {listed(problems)}; mend the file, or judge the other rows with --skip-invalid")
    if not rows:
        raise DataError(f"{path}: no row in it; {_FORM}")
    return rows, problems


def _row(text: str, number: int, limits: Limits) -> Row:
    try:
        record = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    prompt = _tokens(record, "prompt", limits, limits.special_tokens)
    output = _tokens(record, "output", limits, False)
    if not prompt:
        raise ValueError("the prompt has no token")
    length = len(prompt) + len(output)
    if length > limits.context_length:
        raise ValueError(f"{length} tokens of prompt and output; the target's context is {limits.context_length}")
    by_text = "output_ids" not in record
    if by_text and limits.sampled:
        raise ValueError("output is text, whose tokens are not known for certain: sampled rows need output_ids")
    logprobs = _logprobs(record.get("logprobs"), len(output), by_text)
    return Row(number, str(record.get("id", number)), prompt, output, record["output"] if by_text else None, logprobs)


def _tokens(record: dict[str, Any], name: str, limits: Limits, special_tokens: bool) -> list[int]:
    """The ids of prompt or output."""
    text, ids = record.get(name), record.get(f"{name}_ids")
    if text is None and ids is None:
        raise ValueError(f"no {name}_ids and no {name}; {_FORM}")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{name} must be a string")
    if text is not None and (problem := lone_surrogate(text)):
        raise ValueError(f"{name} has {problem}")
    if ids is None:
        return _encoded(name, str(text), limits, special_tokens)
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise ValueError(f"{name}_ids must be a list of integers")
    outside = next((token for token in ids if not 0 <= token < limits.vocab_size), None)
    if outside is not None:
        raise ValueError(f"{name}_ids has {outside}, outside the target's vocabulary of {limits.vocab_size}")
    if text is not None and limits.tokenizer is not None and not _agree(limits.tokenizer, ids, text):
        raise ValueError(f"{name} is not the text of {name}_ids with this tokenizer; is it the engine's own?")
    return ids


def _encoded(name: str, text: str, limits: Limits, special_tokens: bool) -> list[int]:
    if limits.tokenizer is None:
        raise ValueError(f"{name} is text, but --target has no tokenizer: set --tokenizer, or give {name}_ids")
    ids: list[int] = limits.tokenizer.encode(text, add_special_tokens=special_tokens)
    if name == "output" and limits.tokenizer.decode(ids, clean_up_tokenization_spaces=False) != text:
        raise ValueError("output does not survive this tokenizer (encoded and decoded it differs): give output_ids")
    outside = next((token for token in ids if token >= limits.vocab_size), None)
    if outside is not None:
        raise ValueError(f"{name} encodes to {outside}, outside the target's vocabulary of {limits.vocab_size}")
    return ids


def _agree(tokenizer: Any, ids: list[int], text: str) -> bool:
    """Whether ids are a text's: special tokens may be left out of it, and spaces at its ends."""
    decode: Callable[..., str] = tokenizer.decode
    return text.strip() in {
        decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False).strip() for skip in (False, True)
    }


def _logprobs(values: Any, num_tokens: int, by_text: bool) -> list[float] | None:
    if values is None:
        return None
    if by_text:
        raise ValueError("logprobs need output_ids")
    if not isinstance(values, list) or not all(
        type(value) in (int, float) and math.isfinite(value) for value in values
    ):
        raise ValueError("logprobs must be a list of finite numbers")
    if len(values) != num_tokens:
        raise ValueError(f"{len(values)} logprobs for {num_tokens} tokens of output_ids")
    if any(value > 1e-3 for value in values):
        raise ValueError("a log-probability is above 0: logprobs are natural logarithms")
    return [float(value) for value in values]
