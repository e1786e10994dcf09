"""Prompt lookup: drafts what followed the last few tokens when they last occurred in the row's prompt and output.

The longest n-gram that occurred before wins, in its latest occurrence; the copy may run into itself, so that a loop is
drafted to any length. With several ``matches``, the copies of the next occurrences (older ones, then those of shorter
n-grams) are branches of a tree, for as long as they differ from the copies before them.
Source: Saxena 2023, "Prompt lookup decoding"; here every n-gram is indexed when it is committed, so that a look-up
takes the same time in a long text.
"""

from __future__ import annotations

from collections.abc import Iterator

from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.core.siblings import CHOSEN
from specdec.drafters.base import Drafter
from specdec.drafters.chain import chosen_chains
from specdec.drafters.context import DrafterContext
from specdec.drafters.token_trees import chosen_trees, merged
from specdec.errors import ConfigError

Following = dict[tuple[int, ...], list[int]]
"""By n-gram: the indices after its latest occurrences, in order."""


class PromptLookupDrafter(Drafter):
    """Chains or trees copied from the row's own tokens; no model, no probabilities."""

    def __init__(self, context: DrafterContext, *, max_ngram: int, min_ngram: int, matches: int) -> None:
        if not 1 <= min_ngram <= max_ngram:
            raise ConfigError(
                f"drafter.min_ngram={min_ngram}, drafter.max_ngram={max_ngram}: choose 1 <= min_ngram <= max_ngram"
            )
        if matches < 1:
            raise ConfigError(f"drafter.matches={matches}: it must be at least 1")
        if matches > 1:
            self.siblings = CHOSEN
        self._device, self._matches = context.device, matches
        self._sizes = range(max_ngram, min_ngram - 1, -1)
        self._tokens: dict[int, list[int]] = {}
        self._following: dict[int, Following] = {}

    def admit(self, rows: list[Sequence]) -> None:
        for row in rows:
            self._tokens[row.index], self._following[row.index] = [], {}
        self.commit(rows)

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        drafts = [self._copies(row.index, gamma) for row, gamma in zip(rows, gammas, strict=True)]
        if self._matches > 1:
            return chosen_trees([merged(paths) for paths in drafts], self._device)
        return chosen_chains([paths[0] if paths else [] for paths in drafts], self._device)

    def commit(self, rows: list[Sequence]) -> None:
        """Index what was emitted. The n-gram at the very end has no next token yet: the next commit indexes it."""
        for row in rows:
            tokens, following = self._tokens[row.index], self._following[row.index]
            for token in row.tokens(len(tokens)):
                for size in self._sizes:
                    if len(tokens) >= size:
                        self._remember(following, tuple(tokens[-size:]), len(tokens))
                tokens.append(token)

    def release(self, rows: list[Sequence]) -> None:
        for row in rows:
            del self._tokens[row.index], self._following[row.index]

    def _remember(self, following: Following, ngram: tuple[int, ...], start: int) -> None:
        starts = following.setdefault(ngram, [])
        starts.append(start)
        if len(starts) > self._matches:
            del starts[0]

    def _copies(self, key: int, gamma: int) -> list[list[int]]:
        """Different continuations, at most ``matches``; none if no n-gram at the end occurred before."""
        copies: list[list[int]] = []
        for start in self._starts(key) if gamma else ():
            copy = self._copy(self._tokens[key], start, gamma)
            if copy not in copies:
                copies.append(copy)
            if len(copies) == self._matches:
                break
        return copies

    def _starts(self, key: int) -> Iterator[int]:
        """Where the tokens after earlier occurrences begin: of the longest n-gram first, and the latest first."""
        tokens = self._tokens[key]
        for size in self._sizes:
            if size <= len(tokens):
                yield from reversed(self._following[key].get(tuple(tokens[-size:]), []))

    @staticmethod
    def _copy(tokens: list[int], start: int, gamma: int) -> list[int]:
        copy = tokens[start : start + gamma]
        period = len(tokens) - start
        while len(copy) < gamma:  # past the end the copy runs into itself
            copy.append(copy[-period])
        return copy
