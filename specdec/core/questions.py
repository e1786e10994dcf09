"""Lines of prompt files: Spec-Bench's, SPEED-Bench's and LongBench's schemas, one prompt, or messages; all is checked.

Imports no torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeAlias

from specdec.core.text_files import lone_surrogate

Message: TypeAlias = dict[str, str]
"""``role`` and ``content``, as chat templates take them."""

FIELDS = ("question_id", "category", "turns")
_ONCE = (*FIELDS, "prompt", "messages")
_ROLES = ("system", "user", "assistant")
_MAX_KEYS = 6  # keys of an unexpected object that a message lists
_PLACEHOLDER = "FULL BENCHMARK DATA SHOULD BE FETCHED"  # in place of texts that SPEED-Bench may not redistribute


@dataclass(frozen=True, slots=True)
class Question:
    """The content of one line: the turns of a user, or messages with answers between them."""

    question_id: str | int
    category: str
    messages: tuple[Message, ...]  # begins with a system message, if there is one; ends with a user's
    whole: bool = False  # whether all messages are one prompt, unless a conversation is played
    cut: bool = False  # whether an answer to the last message was left out

    def prompts(self, turns: str) -> list[list[Message]]:
        """The messages of each prompt; ``turns`` is ``first``, ``all`` or ``conversation``.

        In a conversation the messages of a later turn are that turn alone: the model's own answers come before it.
        """
        if self.whole and turns != "conversation":
            return [list(self.messages)]
        found: list[list[Message]] = [[]]
        for message in self.messages:
            if message["role"] != "assistant":
                found[-1].append(message)
            if message["role"] == "user":
                found.append([])
        return found[:1] if turns == "first" else found[:-1]


def question_of(record: Any, number: int) -> Question:
    """The question in a record, or in a line that holds one.

    Args:
        number: of the line, which names a question that has no id.

    Raises:
        ValueError: it is not such a record; the message says why.
    """
    if isinstance(record, str):
        record = _parsed(record)
    if not isinstance(record, dict):
        raise ValueError(f"not a JSON object but {_kind(record)}")
    record = _with_prompt(record)
    form = next((key for key in ("turns", "messages", "prompt") if record.get(key) is not None), None)
    if form not in ("messages", "prompt"):
        missing = [key for key in FIELDS if record.get(key) is None]
        if missing:
            other = ", nor prompt or messages" if form is None else ""
            known = f'it has {_keys(record)}; {{"prompt": "..."}} alone is enough'
            raise ValueError(f"no {', '.join(missing)}{other} ({known})")
    question_id = number if record.get("question_id") is None else record["question_id"]
    category = record["category"] if record.get("category") is not None else str(form)
    _check_id(question_id)
    _check_text("category", category)
    if form == "messages":
        messages = checked_messages(record["messages"])
        asked = messages[: 1 + max(place for place, message in enumerate(messages) if message["role"] == "user")]
        return Question(question_id, category, asked, whole=True, cut=len(asked) < len(messages))
    turns = [record["prompt"]] if form == "prompt" else _turns(record["turns"])
    if form == "prompt":
        _check_text("prompt", turns[0])
    return Question(question_id, category, tuple({"role": "user", "content": turn} for turn in turns))


def _with_prompt(record: dict[str, Any]) -> dict[str, Any]:
    """A record of LongBench or a set like it, whose prompt is a context, a question, and what to choose from."""
    if any(record.get(key) is not None for key in ("turns", "messages", "prompt")) or record.get("context") is None:
        return record
    question = next((key for key in ("input", "question") if record.get(key) is not None), None)
    if question is None:
        raise ValueError("a context without input or question")
    for key in ("context", question):
        _check_text(key, record[key])
    choices = [f"({letter}) {record[f'choice_{letter}']}" for letter in "ABCD" if record.get(f"choice_{letter}")]
    asked = "\n".join([record[question], *choices])
    named = {"question_id": record.get("_id"), "category": record.get("dataset") or record.get("domain")}
    return {**named, "prompt": f"{record['context']}\n\n{asked}".strip()}


def _parsed(line: str) -> Any:
    try:
        return json.loads(line, object_pairs_hook=_checked_object)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def _checked_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; duplicate fields are refused, because JSON does not say which one counts."""
    keys = [key for key, _ in pairs]
    for key in _ONCE:
        if keys.count(key) > 1:
            raise ValueError(f"{key} is given twice")
    return dict(pairs)


def checked_messages(messages: Any) -> tuple[Message, ...]:
    """Checked messages: a system message at most, then users and assistants in turn.

    Raises:
        ValueError: they are none; the message says why.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"messages must be a non-empty list of objects, not {_kind(messages)}")
    found: list[Message] = []
    for number, message in enumerate(messages, 1):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in _ROLES:
            raise ValueError(f"message {number} must have the role {', '.join(_ROLES[:-1])} or {_ROLES[-1]}")
        _check_text(f"the content of message {number}", message.get("content"))
        before = found[-1]["role"] if found else None
        if role not in {None: ("system", "user"), "system": ("user",), "user": ("assistant",)}.get(before, ("user",)):
            raise ValueError(
                f"message {number} has the role {role}, which may not come {f'after {before}' if before else 'first'}"
            )
        found.append({"role": role, "content": message["content"]})
    if found[-1]["role"] == "system":
        raise ValueError("no message has the role user")
    return tuple(found)


def _check_id(value: Any) -> None:
    if isinstance(value, str):
        _check_text("question_id", value)
    elif isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"question_id must be an integer or a string, not {_kind(value)}")


def _turns(turns: Any) -> list[str]:
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"turns must be a non-empty list of strings, not {_kind(turns)}")
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, str):
            raise ValueError(f"turns must be a list of strings, but turn {number} is {_kind(turn)}")
        _check_text(f"turn {number}", turn)
        if turn.startswith(_PLACEHOLDER):
            raise ValueError(f"turn {number} is a placeholder, whose text is made by SPEED-Bench's prepare_data.py")
    return turns


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, not {_kind(value)}")
    if (problem := lone_surrogate(value)) is not None:
        raise ValueError(f"{name} has {problem}, which is not valid text")


def _kind(value: Any) -> str:
    """A JSON value in words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return "a string"
    if isinstance(value, int | float):
        return f"the number {value}"[:40]
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    return f"an object with {_keys(value)}" if isinstance(value, dict) else f"a {type(value).__name__}"


def _keys(record: dict[str, Any]) -> str:
    named = [f"{key!a}"[1:-1][:40] for key in list(record)[:_MAX_KEYS]]
    return ", ".join([*named, *["..."] * (len(record) > _MAX_KEYS)]) or "no keys"
