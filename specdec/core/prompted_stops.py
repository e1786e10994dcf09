"""Stop strings as in `transformers.generate`: one may begin in the prompt if a new token completes it."""

from __future__ import annotations

from specdec.core.stop_strings import INCOMPLETE, NUM_BEFORE, Decode, StopText

BYTES = 4  # most tokens of one character


class PromptedStopText(StopText):
    """Text of one row's last tokens, prompt included; a stop string counts if its last character is new."""

    def __init__(self, strings: tuple[str, ...], decode: Decode, prompt_ids: list[int]) -> None:
        super().__init__(strings, decode)
        self._num_kept = BYTES * max(map(len, strings)) + NUM_BEFORE
        self._tail = prompt_ids[-self._num_kept :]

    def push(self, token: int) -> bool:
        before = self._decode(self._tail).rstrip(INCOMPLETE)
        self._tail.append(token)
        text = self._decode(self._tail)
        self._tail = self._tail[-self._num_kept :]
        return any(text.find(string, max(len(before) - len(string) + 1, 0)) >= 0 for string in self._strings)
