"""Prompt lookup: drafts what followed the last few tokens when they last occurred in the row's prompt and output.

The longest n-gram that occurred before wins, in its latest occurrence; the copy may run into itself, so that a loop is
drafted to any length. With several ``matches``, the copies of the next occurrences (older ones, then those of shorter
n-grams) are branches of a tree, for as long as they differ from the copies before them.
Source: Saxena 2023, "Prompt lookup decoding"; here a look-up takes the same time in a long text: one occurrence is
found by a suffix automaton, several by an index of all n-grams.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.core.siblings import CHOSEN
from specdec.drafters.base import Drafter
from specdec.drafters.chain import chosen_chains
from specdec.drafters.context import DrafterContext
from specdec.drafters.suffix_automaton import SuffixAutomaton
from specdec.drafters.token_trees import chosen_trees, merged
from specdec.errors import ConfigError


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
        self._max_ngram, self._min_ngram = max_ngram, min_ngram
        self._tokens: dict[int, list[int]] = {}
        self._places: dict[int, SuffixAutomaton | NgramIndex] = {}

    def admit(self, rows: list[Sequence]) -> None:
        for row in rows:
            self._tokens[row.index] = []
            if self._matches == 1:
                self._places[row.index] = SuffixAutomaton(self._max_ngram, self._min_ngram)
            else:
                self._places[row.index] = NgramIndex(self._max_ngram, self._min_ngram, self._matches)
        self.commit(rows)

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        drafts = [self._copies(row.index, gamma) for row, gamma in zip(rows, gammas, strict=True)]
        if self._matches > 1:
            return chosen_trees([merged(paths) for paths in drafts], self._device)
        return chosen_chains([paths[0] if paths else [] for paths in drafts], self._device)

    def commit(self, rows: list[Sequence]) -> None:
        for row in rows:
            tokens, places = self._tokens[row.index], self._places[row.index]
            for token in row.tokens(len(tokens)):
                places.append(token)
                tokens.append(token)

    def release(self, rows: list[Sequence]) -> None:
        for row in rows:
            del self._tokens[row.index], self._places[row.index]

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

    def _starts(self, key: int) -> Iterable[int]:
        """Where the tokens after earlier occurrences begin: of the longest n-gram first, and the latest first."""
        places = self._places[key]
        if isinstance(places, NgramIndex):
            return places.starts()
        return () if places.start is None else (places.start,)

    @staticmethod
    def _copy(tokens: list[int], start: int, gamma: int) -> list[int]:
        copy = tokens[start : start + gamma]
        period = len(tokens) - start
        while len(copy) < gamma:  # past the end the copy runs into itself
            copy.append(copy[-period])
        return copy


class NgramIndex:
    """Where the tokens after the latest occurrences of every n-gram of a text begin."""

    def __init__(self, longest: int, shortest: int, matches: int) -> None:
        self._sizes, self._matches = range(longest, shortest - 1, -1), matches
        self._tokens: list[int] = []
        self._following: dict[tuple[int, ...], list[int]] = {}

    def append(self, token: int) -> None:
        """Extend the text. The n-gram at its end has no next token yet: the next call indexes it."""
        tokens = self._tokens
        for size in self._sizes:
            if len(tokens) >= size:
                starts = self._following.setdefault(tuple(tokens[-size:]), [])
                starts.append(len(tokens))
                if len(starts) > self._matches:
                    del starts[0]
        tokens.append(token)

    def starts(self) -> Iterator[int]:
        """Those of the n-grams at the end: of the longest first, and the latest first."""
        for size in self._sizes:
            if size <= len(self._tokens):
                yield from reversed(self._following.get(tuple(self._tokens[-size:]), []))
