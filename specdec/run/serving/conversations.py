"""Conversations: the next turn's prompt is everything said so far, as the tokens that were really said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from specdec.core.prompts import Prompt
from specdec.errors import DataError

_ANSWER = "(the answer goes here)"


class Conversations:
    """Finds and builds the prompt that follows an answer.

    The history is kept as token ids: the prompt as it was fed, the answer as it was emitted (without the token that
    stopped it), then the new turn. With a chat template, what stands between an answer and the next one is the
    template's; without, the turn begins on a new line.

    Args:
        limit: tokens that fit beside the output. A longer prompt is refused, skipped with all that follows it, or
            loses its oldest tokens, as ``overlong`` says.
    """

    def __init__(
        self,
        prompts: Iterable[Prompt],
        tokenizer: Any,
        stop_ids: frozenset[int],
        *,
        chat_template: str,
        overlong: str,
        limit: int,
    ) -> None:
        self._prompts = {prompt.index: prompt for prompt in prompts}
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._with_template = chat_template != "never" and bool(getattr(tokenizer, "chat_template", None))
        self._overlong = overlong
        self._limit = limit

    def openings(self) -> list[Prompt]:
        """First turns."""
        return [prompt for prompt in self._prompts.values() if prompt.turn == 0]

    def follow_up(self, index: int, prompt_ids: list[int], output_ids: list[int]) -> Prompt | None:
        """The prompt that follows row ``index`` with its history, a first turn as far as anybody else can tell.

        Raises:
            DataError: it is too long, and ``overlong`` is ``refuse``.
        """
        turn = self._prompts.get(index + 1)
        if turn is None or turn.turn == 0:
            return None
        answer = output_ids[:-1] if output_ids and output_ids[-1] in self._stop_ids else output_ids
        ids = [*prompt_ids, *answer, *self._between(turn.text)]
        if len(ids) > self._limit:
            if self._overlong == "skip":
                return None
            if self._overlong == "refuse":
                raise DataError(
                    f"question_id {turn.question_id}: turn {turn.turn + 1} has {len(ids)} tokens with its history and "
                    f"{self._limit} fit; set data.overlong=truncate (the oldest are dropped) or skip"
                )
            ids = ids[-self._limit :]
        return replace(turn, ids=ids, turn=0)

    def _between(self, text: str) -> list[int]:
        """Tokens from the end of an answer to the beginning of the next."""
        if not self._with_template:
            return list(self._tokenizer("\n" + text, add_special_tokens=False)["input_ids"])
        messages = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": _ANSWER},
            {"role": "user", "content": text},
        ]
        rendered: str = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        _, found, after = rendered.partition(_ANSWER)
        if not found:
            raise DataError("the tokenizer's chat template drops earlier answers: set data.chat_template=never")
        return list(self._tokenizer(after, add_special_tokens=False)["input_ids"])
