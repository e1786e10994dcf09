"""Catching up: the time in which the draft reads what its cache lacks of a row, and whether drafting repays it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specdec.core.sequence import Sequence

if TYPE_CHECKING:
    from specdec.core.round import Round


class CatchUpCosts:
    """Seconds of catching up, per token that the draft's cache lacks.

    The cache lacks nothing of rows that the draft prefilled, and everything of rows that joined while nothing was
    drafted. A row is expected to emit its remaining budget, or the mean output of the run if that is less: all emitted
    tokens by the number of finished rows, which allows for the rows in flight if lengths are distributed exponentially.

    Args:
        usual: tokens that the draft's cache may lack in any round.
    """

    def __init__(self, usual: int) -> None:
        self._usual = usual
        self._profiled_s = 0.0
        self._read_to: dict[int, int] = {}  # tokens of each row that the draft's cache holds
        self._num_read, self._read_s = 0, 0.0
        self._num_rows = self._num_prompt_tokens = self._num_allowed = 0  # of all rows so far
        self._num_emitted = self._num_done = 0

    def set_prior(self, s_per_token: float) -> None:
        """Take a profile's figure until this run has measured its own."""
        self._profiled_s = s_per_token

    def lag(self, row: Sequence) -> int:
        """Tokens of a row that the draft's cache lacks beyond the usual ones."""
        lag = row.length - self._read_to.get(row.index, 0)
        return lag if lag > self._usual else 0

    def join(self, rows: list[Sequence], prefilled: bool) -> None:
        """Register the new rows among ``rows``, which the draft has prefilled or not."""
        for row in rows:
            if row.index not in self._read_to:
                self._read_to[row.index] = len(row.prompt_ids) if prefilled else 0
                self._num_rows += 1
                self._num_prompt_tokens += len(row.prompt_ids)
                self._num_allowed += row.num_remaining

    def observe(self, outcome: Round, asked: list[int], excess_s: float) -> bool:
        """Add a round that took ``excess_s`` longer than usual; returns whether its draft had to catch up."""
        self._num_emitted += sum(map(len, outcome.emitted))
        num_lacking = 0
        for row, gamma, emitted in zip(outcome.rows, asked, outcome.emitted, strict=True):
            if gamma:
                lag = row.length - len(emitted) - self._read_to[row.index]
                num_lacking += lag if lag > self._usual else 0
                self._read_to[row.index] = row.length
        if num_lacking:
            self._num_read += num_lacking
            self._read_s += max(excess_s, 0.0)
        for row in outcome.finished:
            self._read_to.pop(row.index, None)
            self._num_done += 1
        return num_lacking > 0

    def s_per_token(self, scale: float) -> float:
        """Seconds per token; ``scale`` is how much slower this run is than the profile. 0 if nothing is known."""
        return self._read_s / self._num_read if self._num_read else self._profiled_s * scale

    def newcomers_repay(self, saving_s: float, scale: float) -> bool:
        """Whether a mean prompt is read in less time than drafting saves on a mean output."""
        num_rows = max(self._num_rows, 1)
        num_output = self._expected(self._num_allowed / num_rows)
        return self._num_prompt_tokens / num_rows * self.s_per_token(scale) <= num_output * saving_s

    def repays(self, row: Sequence, saving_s: float, scale: float) -> bool:
        """Whether the draft catches up with a row in less time than drafting then saves, ``saving_s`` per token."""
        lag = self.lag(row)
        return not lag or lag * self.s_per_token(scale) <= self._expected(row.num_remaining) * saving_s

    def _expected(self, num_allowed: float) -> float:
        """Tokens that a row with so large a budget is expected to emit."""
        return min(num_allowed, self._num_emitted / self._num_done) if self._num_done else num_allowed
