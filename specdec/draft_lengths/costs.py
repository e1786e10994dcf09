"""What drafting costs, measured while decoding: rounds, and the reading of what the draft's cache lacks.

Rounds: medians of what was measured, and a model where nothing was.

The model is a plain round's cost times 1 + what the draft adds: a line in the drafted steps through the nearest lengths
that were measured, at the nearest batch size. Between two measured batch sizes a plain round's cost is linear; beyond
them half of it is taken as fixed and half as proportional to the batch, until that size is measured too.
"""

from __future__ import annotations

from collections import deque
from math import log2
from statistics import median_low
from typing import TYPE_CHECKING

from specdec.sequence import Sequence

if TYPE_CHECKING:
    from specdec.engine import Round

WINDOW = 15  # last measurements of a bucket that its median is taken of
MIN_SLOPE = 0.01  # of a plain round, that one drafted step costs at least
REPAID = 1.1  # times what reading takes, that drafting has to save: the saving is only expected
FIRST_STEP_SHARE = 0.3  # of a draft's cost, that comes with its first step, as long as one length only was measured


class RoundCosts:
    """Seconds of a round by its number of rows and of drafted steps.

    What short runs have measured before serves until a round of that kind was measured here; of these only the
    proportions count, because the machine may have been slower or faster then.
    """

    def __init__(self) -> None:
        self._believed: dict[tuple[int, int], float] = {}
        self._measured: dict[tuple[int, int], deque[float]] = {}
        self._here: dict[tuple[int, int], float] = {}  # medians of what was measured
        self._medians: dict[tuple[int, int], float] = {}  # these, and what is believed of the others

    def believe(self, num_rows: int, num_steps: int, seconds: float) -> None:
        """Such a round took so long in an earlier short run."""
        self._believed[num_rows, num_steps] = seconds
        self._merge()

    def observe(self, num_rows: int, num_steps: int, seconds: float) -> None:
        """A round of ``num_rows`` rows, the longest draft of which had ``num_steps`` tokens, took so long."""
        key = (num_rows, num_steps)
        bucket = self._measured.setdefault(key, deque(maxlen=WINDOW))
        bucket.append(seconds)
        self._here[key] = median_low(bucket)  # of two the smaller: what disturbs a measurement makes it longer
        self._merge()

    def _merge(self) -> None:
        ratios = [seconds / self._believed[key] for key, seconds in self._here.items() if key in self._believed]
        scale = median_low(ratios) if ratios else 1.0
        self._medians = {**{key: scale * seconds for key, seconds in self._believed.items()}, **self._here}

    def num_measured(self, num_rows: int, num_steps: int) -> int:
        """Measurements of this run that the estimate of this bucket stands on."""
        return len(self._measured.get((num_rows, num_steps), ()))

    @property
    def longest(self) -> int:
        """The most drafted steps of a round that was measured, here or before."""
        return max((steps for _, steps in self._medians), default=0)

    def knows(self, drafted: bool) -> bool:
        """Whether any round with (or without) a draft was measured, here or before."""
        return any((steps > 0) == drafted for _, steps in self._medians)

    def estimate(self, num_rows: int, num_steps: int) -> float:
        """Seconds that such a round takes.

        Raises:
            ValueError: no plain round was measured; or none with a draft, and that is what is asked for.
        """
        known = self._medians.get((num_rows, num_steps))
        if known is not None:
            return known
        plain_s = self._plain(num_rows)
        return plain_s if num_steps == 0 else plain_s * (1 + self._extra(num_rows, num_steps))

    def _plain(self, num_rows: int) -> float:
        known = sorted(rows for rows, steps in self._medians if steps == 0)
        if not known:
            raise ValueError("no plain round was measured")
        below = max((rows for rows in known if rows <= num_rows), default=None)
        above = min((rows for rows in known if rows >= num_rows), default=None)
        if below is None or above is None:
            nearest = above if below is None else below
            assert nearest is not None
            return self._medians[nearest, 0] * (0.5 + 0.5 * num_rows / nearest)
        low_s, high_s = self._medians[below, 0], self._medians[above, 0]
        return low_s if below == above else low_s + (high_s - low_s) * (num_rows - below) / (above - below)

    def _extra(self, num_rows: int, num_steps: int) -> float:
        """Cost of the drafted steps (drafting them, and their places in the verification) as a share of a plain round.

        A line through the nearest measured lengths of the nearest measured batch size. Through one point only, a part
        of the cost is taken as the first step's alone: if that is too hopeful, the first such round tells.
        """
        drafted = [key for key in self._medians if key[1] > 0]
        if not drafted:
            raise ValueError("no round with a draft was measured")
        rows = min((key[0] for key in drafted), key=lambda size: (abs(log2(size / num_rows)), size))
        extras = {steps: self._medians[rows, steps] / self._plain(rows) - 1 for size, steps in drafted if size == rows}
        nearest = sorted(sorted(extras), key=lambda steps: abs(steps - num_steps))[:2]
        known = extras[nearest[0]]
        share = (1 - FIRST_STEP_SHARE) * known / nearest[0]  # of one more step
        if len(nearest) == 2:
            other = (extras[nearest[1]] - known) / (nearest[1] - nearest[0])
            share = min(
                max(other, 0.0), known / nearest[0]
            )  # noise makes lines that fall, or begin below a plain round
        return max(known + share * (num_steps - nearest[0]), MIN_SLOPE * num_steps)


class ReadingCosts:
    """What it costs to bring the draft's cache up to its rows, per token that it lacks.

    Rows whose prompts the draft has read lack nothing; those that joined while nothing was drafted lack everything.
    """

    def __init__(self) -> None:
        self._read_to: dict[int, int] = {}  # tokens of each row that the draft's cache is known to hold
        self._num_read, self._read_s = 0, 0.0
        self._postponed: tuple[float, int] | None = None
        self._num_prompt_tokens, self._num_output_tokens = 0, 0  # of rows that are done
        self._num_met, self._most_output = 0, 0  # prompt tokens of all rows, and what these may emit

    def believe(self, s_per_token: float) -> None:
        """Reading took so long per token before this run: for as long as no reading was measured here."""
        self._num_read, self._read_s = 1, s_per_token

    def lag(self, row: Sequence) -> int:
        """Tokens of a row that the draft's cache is not known to hold."""
        return row.length - self._read_to.get(row.index, 0)

    def meet(self, rows: list[Sequence], already_read: bool) -> None:
        """Note which newcomers' prompts the draft has read."""
        for row in rows:
            if row.index not in self._read_to:
                self._read_to[row.index] = len(row.prompt_ids) if already_read else 0
                self._num_met += len(row.prompt_ids)
                self._most_output += row.num_remaining

    def lacking(self, outcome: Round, asked: list[int], usual: int) -> int:
        """Tokens that a round's drafts had to read first, beyond the ``usual`` few of any round."""
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
        self._num_prompt_tokens += len(row.prompt_ids)
        self._num_output_tokens += len(row.output_ids)

    @property
    def s_per_token(self) -> float:
        """Seconds that reading one token takes; 0 until it was measured."""
        return self._read_s / max(self._num_read, 1)

    def newcomers_repay(self, saving_s: float) -> bool:
        """Whether a prompt is read in clearly less time than drafting saves on an output, for the usual row."""
        if self._num_output_tokens:
            num_prompt, num_output = self._num_prompt_tokens, self._num_output_tokens
        else:
            num_prompt, num_output = self._num_met, self._most_output
        return REPAID * num_prompt * self.s_per_token <= num_output * saving_s

    def repays(self, row: Sequence, saving_s: float, usual: int) -> bool:
        """Whether what the draft lacks of a row is read in clearly less time than drafting then saves on its output.

        Args:
            saving_s: seconds that drafting saves per emitted token. usual: tokens that any round's draft lacks.
        """
        lag = self.lag(row)
        return lag <= usual or REPAID * lag * self.s_per_token <= row.num_remaining * saving_s
