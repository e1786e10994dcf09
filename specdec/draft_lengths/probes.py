"""Probes: while nothing is drafted, a few rows draft for a few rounds, to see whether it would pay by now.

A few rows of a large batch say enough in two rounds. A single row is asked for longer: one rejection early in its text
says little, and to stop drafting on its account would cost the whole pause that follows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from specdec.core.sequence import Sequence
from specdec.draft_lengths.costs import RoundCosts

if TYPE_CHECKING:
    from specdec.core.round import Round

PROBE_ROWS, PROBE_SHARE, PROBE_STEPS = 4, 0.25, 2  # rows, at least and of the batch, and tokens that each drafts
FIRST_ROUNDS, ROUNDS = 3, 2  # of a probe, at least; the first of them reads what the draft's cache lacks
FIRST_TRIALS, TRIALS = 24, 8  # drafted tokens that a probe wants to see tried,
MOST_ROUNDS = 10  # and rounds after which it ends without them
SHORTEST_PAUSE, LONGEST_PAUSE = 16, 1024  # rounds between probes; doubled after each


def num_asked(num_rows: int) -> int:
    """Rows that draft in a probe of a batch of so many."""
    return max(PROBE_ROWS, round(PROBE_SHARE * num_rows))


class Probes:
    """When to probe, and which rows: after longer and longer pauses, and never for more than a share of the time."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._rows: list[int] = []
        self._open = False  # a probe was begun that is not paid for yet
        self._rounds_left = self._trials_left = self._num_rounds = 0
        self._pause, self._since = SHORTEST_PAUSE, 0
        self._elapsed_s = self._spent_s = self._last_s = 0.0

    @property
    def running(self) -> bool:
        """Whether a probe is under way."""
        return self._rounds_left > 0 or (self._trials_left > 0 and self._num_rounds < MOST_ROUNDS)

    def includes(self, row: Sequence) -> bool:
        """Whether a row drafts in the probe under way."""
        return row.index in self._rows

    @property
    def rested(self) -> bool:
        """Whether the pause is over."""
        return self._since >= self._pause

    def affordable(self, expected_s: float) -> bool:
        """Whether a probe that costs as much as the last one, the first one ``expected_s``, keeps to its share."""
        return self._spent_s + (self._last_s or expected_s) <= self._share * self._elapsed_s

    def start(self, able: list[Sequence], num_rows: int, first: bool) -> None:
        """Let the first of the rows that are able to draft do so, if any is; the ``first`` probe measures costs too."""
        self._rows = [row.index for row in able[: num_asked(num_rows)]]
        self._num_rounds = self._rounds_left = self._trials_left = 0
        self._open = bool(able)
        if able:
            self._rounds_left, self._trials_left = (FIRST_ROUNDS, FIRST_TRIALS) if first else (ROUNDS, TRIALS)
        self._last_s = 0.0

    def ask_no_longer(self) -> None:
        """Ask no longer than for the costs: no acceptance would make drafting pay."""
        self._trials_left = 0

    def reset(self) -> None:
        """Drafting pays: when it stops doing so, the pauses begin from the shortest."""
        self._pause, self._since = SHORTEST_PAUSE, 0

    def observe(self, outcome: Round, seconds: float, costs: RoundCosts) -> None:
        """Charge a probe's round with the time that plain rounds would not have taken for its tokens."""
        self._elapsed_s += seconds
        self._since += 1
        if not self._open:
            return
        num_emitted = sum(map(len, outcome.emitted))
        plain_s = costs.estimate(len(outcome.rows), 0) * num_emitted / len(outcome.rows)
        self._last_s += max(seconds - plain_s, 0.0)
        self._num_rounds += 1
        self._rounds_left -= 1
        for row, drafted, accepted in zip(outcome.rows, outcome.num_drafted, outcome.num_accepted, strict=True):
            self._trials_left -= min(accepted + 1, drafted) if self.includes(row) else 0
        if not self.running or all(row.finished for row in outcome.rows if self.includes(row)):
            self._rounds_left = self._trials_left = 0
            self._open = False
            self._spent_s += self._last_s
            self._pause, self._since = min(2 * self._pause, LONGEST_PAUSE), 0
