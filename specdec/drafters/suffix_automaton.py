"""A suffix automaton of a text that grows: where the longest of its last n-grams occurred before. Imports no torch.

A state stands for substrings with the same ends; its link is the state of their longest suffix that also occurs
elsewhere. A token costs amortised constant time for the automaton, and a walk over the states of its last ``longest``
tokens, which notes that they have occurred here, however long the text is.
Source: Blumer et al. 1985, "The smallest automaton recognizing the subwords of a text"; for drafting: Hu et al. 2024,
"SAM decoding", arXiv 2411.10666, which keeps first occurrences; here the latest one counts.
"""

from __future__ import annotations

ROOT, NONE = 0, -1


class SuffixAutomaton:
    """Of one text.

    Args:
        longest, shortest: tokens of the n-grams that are looked for.
    """

    def __init__(self, longest: int, shortest: int) -> None:
        self._longest, self._shortest = longest, shortest
        self._length = [0]  # by state: tokens of its longest substring
        self._link = [NONE]
        self._next: list[dict[int, int]] = [{}]
        self._latest = [NONE]  # by state: index of the last token of its latest occurrence, of n-grams up to `longest`
        self._whole = ROOT  # the state of the whole text
        self._end = ROOT  # the state of its last `longest` tokens, or of all
        self._num_tokens = 0
        self.start: int | None = None
        """Index after the latest earlier occurrence of the longest n-gram at the text's end; None: there is none."""

    def append(self, token: int) -> None:
        """Extend the text by a token."""
        self._extend(token)
        length, link, latest = self._length, self._link, self._latest
        state = self._next[self._end][token]
        if length[link[state]] >= self._longest:
            state = link[state]
        self._end, self.start = state, None
        while state > ROOT:
            if self.start is None and latest[state] != NONE and length[state] >= self._shortest:
                self.start = latest[state] + 1
            latest[state] = self._num_tokens
            state = link[state]
        self._num_tokens += 1

    def _extend(self, token: int) -> None:
        length, link, following = self._length, self._link, self._next
        new, state = self._new(length[self._whole] + 1, {}), self._whole
        while state != NONE and token not in following[state]:
            following[state][token] = new
            state = link[state]
        self._whole = new
        if state == NONE:
            link[new] = ROOT
            return
        found = following[state][token]
        if length[found] == length[state] + 1:
            link[new] = found
            return
        copy = self._new(length[state] + 1, dict(following[found]))
        link[copy], self._latest[copy] = link[found], self._latest[found]
        link[found] = link[new] = copy
        while state != NONE and following[state].get(token) == found:
            following[state][token] = copy
            state = link[state]

    def _new(self, length: int, following: dict[int, int]) -> int:
        self._length.append(length)
        self._link.append(NONE)
        self._next.append(following)
        self._latest.append(NONE)
        return len(self._length) - 1
