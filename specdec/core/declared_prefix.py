"""``data.shared_prefix``: a text that every prompt begins with, whose tokens are held once for the whole run.

The text is the beginning of a prompt's first message, before a chat template is applied. Its tokens are those that a
prompt of this text and all prompts of the run have in common: what the template puts before the text (and the
beginning-of-text token) is part of them, and a last token that is joined with what follows the text is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specdec.assets import local_path
from specdec.core.questions import Message
from specdec.core.text_files import read_text
from specdec.errors import DataError

_SHOWN = 20  # characters of a difference that a message shows


def read_prefix(path: str) -> str:
    """The text of a file, without the line break that ends it.

    Raises:
        DataError: there is no such file, it is not UTF-8, or it is empty.
    """
    file = local_path(path)
    if not file.is_file():
        raise DataError(f"data.shared_prefix={path}: no such file")
    try:
        text = read_text(file)
    except DataError as error:
        raise DataError(f"data.shared_prefix={error}") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise DataError(
            f"data.shared_prefix={path}: the file is empty; write the text that all prompts begin with, or set "
            "data.shared_prefix=null"
        )
    return text


def opening(messages: list[Message], templated: bool) -> str:
    """What a declared text is the beginning of: the first message, or, without a chat template, all of them."""
    return messages[0]["content"] if templated else "\n".join(message["content"] for message in messages)


def check_begins(text: str, own: str, where: str, path: str) -> None:
    """Refuse a prompt that does not begin with the text.

    Args:
        own: what it begins with. where: its name for the message.

    Raises:
        DataError: saying where they first differ.
    """
    if own.startswith(text):
        return
    same = _num_equal(text, own)
    found = f"the prompt {own[same : same + _SHOWN]!r}" if own[same:] else "the prompt ends"
    raise DataError(
        f"{where} does not begin with data.shared_prefix={path}: at character {same + 1} the file has "
        f"{text[same : same + _SHOWN]!r}, and {found}; correct one of them, or set data.shared_prefix=null"
    )


def first_tokens(declared: list[int], prompts: list[list[int]], path: str) -> int:
    """How many first tokens a prompt of the declared text and all others have in common.

    Raises:
        DataError: none.
    """
    if count := min(_num_equal(declared, ids) for ids in prompts):
        return count
    raise DataError(f"data.shared_prefix={path}: the first token of a prompt differs; set data.shared_prefix=null")


def _num_equal(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many first elements are equal."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
