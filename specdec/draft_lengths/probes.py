"""Probes: while nothing is drafted, a few rows draft for a few rounds now and then, to see whether it would pay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specdec.core.sequence import Sequence
from specdec.draft_lengths.costs import RoundCosts

if TYPE_CHECKING:
    from specdec.core.round import Round

ROWS, STEPS, ROUNDS = 4, 2, 2  # of a probe: rows that draft, tokens that each drafts, rounds
PAUSE = 16  # rounds between probes, at least


class Probes:
    """Says when to probe, and which rows: after a pause, and for at most a share of the run's time."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._rows: list[int] = []
        self._rounds_left = 0
        self._since = 0
        self._elapsed_s = self._spent_s = 0.0

    @property
    def running(self) -> bool:
        """Whether a probe is under way."""
        return self._rounds_left > 0

    def includes(self, row: Sequence) -> bool:
        """Whether a row drafts in the probe under way."""
        return row.index in self._rows

    @property
    def rested(self) -> bool:
        """Whether the pause since the last probe is over."""
        return self._since >= PAUSE

    def affords(self, expected_s: float) -> bool:
        """Whether a probe that costs ``expected_s`` keeps to the share."""
        return self._spent_s + expected_s <= self._share * self._elapsed_s

    def start(self, rows: list[Sequence]) -> None:
        """Let these rows draft."""
        self._rows = [row.index for row in rows]
        self._rounds_left = ROUNDS if rows else 0

    def observe(self, outcome: Round, seconds: float, costs: RoundCosts) -> None:
        """Charge a probe's round with the time beyond that of plain rounds for as many tokens."""
        self._elapsed_s += seconds
        self._since += 1
        if self.running:
            num_emitted = sum(map(len, outcome.emitted))
            plain_s = costs.estimate(len(outcome.rows), 0) * num_emitted / len(outcome.rows)
            self._spent_s += max(seconds - plain_s, 0.0)
            self._rounds_left -= 1
            self._since = 0
