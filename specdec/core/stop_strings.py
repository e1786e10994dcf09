"""Stop strings: where the text of a row's new tokens first contains one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from specdec.core.text_files import lone_surrogate
from specdec.errors import ConfigError

Decode = Callable[[list[int]], str]
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # how tokenizers decode an incomplete character
NUM_BEFORE = 5  # tokens decoded again before a new one, because its text may depend on them


def check_stop_strings(strings: Iterable[str]) -> None:
    """Refuse stop strings that no output can contain, because no tokenizer decodes to them.

    Raises:
        ConfigError: naming the string.
    """
    for string in strings:
        if (problem := lone_surrogate(string)) is not None:
            raise ConfigError(f"stop_strings: {string!a} has {problem}, so no output can contain it: fix it")


class StopText:
    """Text of one row's output, token by token: of emitted tokens only, without the prompt.

    Each token is decoded together with the last few before it, so a row's cost is linear in its length.
    """

    def __init__(self, strings: tuple[str, ...], decode: Decode) -> None:
        if not strings or not all(strings):
            raise ConfigError(f"stop_strings={list(strings)}: every stop string needs at least one character")
        self._strings = strings
        self._decode = decode
        self._longest = max(map(len, strings))
        self._tokens: list[int] = []
        self._num_read = 0  # tokens whose text is complete
        self._text = ""  # the end of the text so far, as long as the longest stop string

    def push(self, token: int) -> bool:
        """Add an emitted token; returns whether a stop string is now complete."""
        self._tokens.append(token)
        first = max(self._num_read - NUM_BEFORE, 0)
        before = self._decode(self._tokens[first : self._num_read])
        text = self._decode(self._tokens[first:])
        new = text[len(before) :]
        found = any(string in self._text + new for string in self._strings)
        if new and not new.endswith(INCOMPLETE):
            self._text = (self._text + new)[-self._longest :]
            self._num_read = len(self._tokens)
        return found
