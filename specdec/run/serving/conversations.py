"""Conversations: the next turn's prompt is the whole history, as the token ids that were fed and emitted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from specdec.core.prompts import Prompt
from specdec.errors import DataError

_ANSWER = "(the answer goes here)"


class Conversations:
    """Builds the prompt that follows an answer.

    The history is token ids: the prompt as it was fed, the answer as it was emitted (without its stop token), then the
    new turn. With a chat template, the tokens between one answer and the next come from the template; without one, the
    turn begins on a new line.

    Args:
        limit: longest prompt that leaves room for the output. ``overlong`` decides whether a longer one is refused,
            skipped with the rest of its conversation, or truncated on the left.
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
        """The prompt that follows row ``index``, history included and numbered as a first turn; None if there is none.

        Raises:
            DataError: the prompt is too long and ``overlong`` is ``refuse``, or the template drops earlier answers.
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
                    f"{self._limit} fit; set data.overlong=truncate (drops the oldest) or skip"
                )
            ids = ids[-self._limit :]
        return replace(turn, ids=ids, turn=0)

    def _between(self, text: str) -> list[int]:
        """Tokens between the end of an answer and the beginning of the next."""
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
