"""Questions in Spec-Bench's schema, one JSON object per line: every field checked, every broken line named.

Imports no torch.
"""

from __future__ import annotations

import json
from typing import Any

from specdec.core.text_files import lone_surrogate

FIELDS = ("question_id", "category", "turns")
_MOST_KEYS = 6  # of another shape, that a message names


def question_of(record: Any) -> dict[str, Any]:
    """The three fields of a record, or of a line that holds one.

    Raises:
        ValueError: it is no such record; the message says what is wrong with it.
    """
    if isinstance(record, str):
        record = _parsed(record)
    if not isinstance(record, dict):
        raise ValueError(f"not a JSON object but {_kind(record)}")
    missing = [key for key in FIELDS if record.get(key) is None]
    if missing:
        raise ValueError(f"no {', '.join(missing)} (it has {_keys(record)})")
    _check_id(record["question_id"])
    _check_text("category", record["category"])
    _check_turns(record["turns"])
    return {key: record[key] for key in FIELDS}


def _parsed(line: str) -> Any:
    try:
        return json.loads(line, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("not JSON that can be read (nested too deeply)") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; JSON leaves open which of two equal keys counts."""
    keys = [key for key, _ in pairs]
    for key in FIELDS:
        if keys.count(key) > 1:
            raise ValueError(f"{key} is given twice")
    return dict(pairs)


def _check_id(value: Any) -> None:
    if isinstance(value, str):
        _check_text("question_id", value)
    elif isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"question_id must be a whole number or a text, not {_kind(value)}")


def _check_turns(turns: Any) -> None:
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"turns must be a list of strings, at least one, not {_kind(turns)}")
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, str):
            raise ValueError(f"turns must be a list of strings, but turn {number} is {_kind(turn)}")
        _check_text(f"turn {number}", turn)


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, not {_kind(value)}")
    if (problem := lone_surrogate(value)) is not None:
        raise ValueError(f"{name} has {problem}, which is no text")


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return "a text"
    if isinstance(value, int | float):
        return f"the number {value}"[:40]
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    return f"an object with {_keys(value)}" if isinstance(value, dict) else f"a {type(value).__name__}"


def _keys(record: dict[str, Any]) -> str:
    named = [f"{key!a}"[1:-1][:40] for key in list(record)[:_MOST_KEYS]]
    return ", ".join([*named, *["..."] * (len(record) > _MOST_KEYS)]) or "no keys"
