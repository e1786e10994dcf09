"""What it costs to bring the draft's cache up to rows that it lags behind of, and whether that repays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specdec.core.sequence import Sequence

if TYPE_CHECKING:
    from specdec.core.round import Round

REPAID = 1.1  # times what reading takes, that drafting has to save: the saving is only expected


class ReadingCosts:
    """Seconds of reading per token that the draft's cache lacks.

    Rows whose prompts the draft has read lack nothing; those that joined while nothing was drafted lack everything.
    What is left of a row is its budget, or what outputs come to here if that is less: all emitted tokens by the number
    of rows that are done, the mean of a memoryless law of which the rows in flight have shown a part.

    Attributes:
        scale: how much slower than at the time of a profile this run is; goodput knows it from its rounds.
    """

    def __init__(self) -> None:
        self.scale = 1.0
        self._believed_s = 0.0
        self._read_to: dict[int, int] = {}  # tokens of each row that the draft's cache is known to hold
        self._num_read, self._read_s = 0, 0.0
        self._postponed: tuple[float, int] | None = None
        self._num_rows = self._num_prompt_tokens = self._num_allowed = 0  # of all rows so far
        self._num_emitted = self._num_done = 0

    def believe(self, s_per_token: float) -> None:
        """Reading took so long per token before this run: for as long as no reading was measured here."""
        self._believed_s = s_per_token

    def lag(self, row: Sequence) -> int:
        """Tokens of a row that the draft's cache is not known to hold."""
        return row.length - self._read_to.get(row.index, 0)

    def meet(self, rows: list[Sequence], already_read: bool) -> None:
        """Note which newcomers' prompts the draft has read."""
        for row in rows:
            if row.index not in self._read_to:
                self._read_to[row.index] = len(row.prompt_ids) if already_read else 0
                self._num_rows += 1
                self._num_prompt_tokens += len(row.prompt_ids)
                self._num_allowed += row.num_remaining

    def lacking(self, outcome: Round, asked: list[int], usual: int) -> int:
        """Tokens that a round's drafts had to read first, beyond the ``usual`` few of any round."""
        self._num_emitted += sum(map(len, outcome.emitted))
        total = 0
        for row, gamma, emitted in zip(outcome.rows, asked, outcome.emitted, strict=True):
            if gamma:
                lag = row.length - len(emitted) - self._read_to[row.index]
                total += lag if lag > usual else 0
                self._read_to[row.index] = row.length
        return total

    def postpone(self, draft_s: float, num_tokens: int) -> None:
        """Drafting took so long in a round that had to read so many tokens first."""
        self._postponed = (draft_s, num_tokens)

    def settle(self, draft_s: float, num_steps: int) -> None:
        """Drafting took so long in the next round, which read nothing: the reading is what the other took beyond.

        A reading costs a forward, whatever it reads; that much is taken off, as the cost of a drafted step.
        """
        if self._postponed is not None:
            postponed_s, num_tokens = self._postponed
            self._num_read += num_tokens
            self._read_s += max(postponed_s - draft_s * (1 + 1 / num_steps), 0.0)
            self._postponed = None

    def finish(self, row: Sequence) -> None:
        """A row is done."""
        self._read_to.pop(row.index, None)
        self._num_done += 1

    @property
    def s_per_token(self) -> float:
        """Seconds that reading one token takes; 0 as long as nobody has measured it."""
        return self._read_s / self._num_read if self._num_read else self._believed_s * self.scale

    def newcomers_repay(self, saving_s: float) -> bool:
        """Whether a prompt is read in clearly less time than drafting saves on an output, for the usual row."""
        num_rows = max(self._num_rows, 1)
        num_output = self._expected(self._num_allowed / num_rows)
        return REPAID * self._num_prompt_tokens / num_rows * self.s_per_token <= num_output * saving_s

    def repays(self, row: Sequence, saving_s: float, usual: int) -> bool:
        """Whether what the draft lacks of a row is read in clearly less time than drafting then saves on its output.

        Args:
            saving_s: seconds that drafting saves per emitted token. usual: tokens that any round's draft lacks.
        """
        lag = self.lag(row)
        return lag <= usual or REPAID * lag * self.s_per_token <= self._expected(row.num_remaining) * saving_s

    def _expected(self, num_allowed: float) -> float:
        """Tokens of an output that may have so many."""
        return min(num_allowed, self._num_emitted / self._num_done) if self._num_done else num_allowed
