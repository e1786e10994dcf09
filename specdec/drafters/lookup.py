"""Prompt lookup: drafts what followed the last few tokens when they last occurred in the row's prompt and output.

The longest n-gram that occurred before wins; the copy may run into itself, so that a loop is drafted to any length.
Source: Saxena 2023, "Prompt lookup decoding"; here every n-gram is indexed when it is committed, so that a look-up
takes the same time in a long text.
"""

from __future__ import annotations

from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.drafters.base import Drafter
from specdec.drafters.chain import chosen_chains
from specdec.drafters.context import DrafterContext
from specdec.errors import ConfigError


class PromptLookupDrafter(Drafter):
    """Chains copied from the row's own tokens; no model, no probabilities."""

    def __init__(self, context: DrafterContext, *, max_ngram: int, min_ngram: int) -> None:
        if not 1 <= min_ngram <= max_ngram:
            raise ConfigError(
                f"drafter.min_ngram={min_ngram}, drafter.max_ngram={max_ngram}: choose 1 <= min_ngram <= max_ngram"
            )
        self._device = context.device
        self._sizes = range(max_ngram, min_ngram - 1, -1)
        self._tokens: dict[int, list[int]] = {}
        self._following: dict[int, dict[tuple[int, ...], int]] = {}  # n-gram: index after its latest occurrence

    def admit(self, rows: list[Sequence]) -> None:
        for row in rows:
            self._tokens[row.index], self._following[row.index] = [], {}
        self.commit(rows)

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        drafts = [self._copy(row.index, gamma) for row, gamma in zip(rows, gammas, strict=True)]
        return chosen_chains(drafts, self._device)

    def commit(self, rows: list[Sequence]) -> None:
        """Index what was emitted. The n-gram at the very end has no next token yet: the next commit indexes it."""
        for row in rows:
            tokens, following = self._tokens[row.index], self._following[row.index]
            for token in row.tokens(len(tokens)):
                for size in self._sizes:
                    if len(tokens) >= size:
                        following[tuple(tokens[-size:])] = len(tokens)
                tokens.append(token)

    def release(self, rows: list[Sequence]) -> None:
        for row in rows:
            del self._tokens[row.index], self._following[row.index]

    def _copy(self, key: int, gamma: int) -> list[int]:
        """What followed the latest occurrence of the longest known n-gram; nothing if there is none."""
        tokens = self._tokens[key]
        suffixes = (tuple(tokens[-size:]) for size in self._sizes if size <= len(tokens))
        start = next((self._following[key][s] for s in suffixes if s in self._following[key]), None)
        if start is None:
            return []
        text = list(tokens)
        for place in range(start, start + gamma):
            text.append(text[place])
        return text[len(tokens) :]
