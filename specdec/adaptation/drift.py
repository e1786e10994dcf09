"""Whether rows suddenly accept less than those before them. Imports no torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import fmean, variance

RECENT_ROWS, EARLIER_ROWS = 24, 96
SIGMAS = 4.0  # a standard normal exceeds it once in 30,000 looks
LEAST_EARLIER = 24


class Drift:
    """Compares the tokens per round of the last rows with those of the rows before them (Welch's statistic)."""

    def __init__(self) -> None:
        self._rows: deque[float] = deque(maxlen=RECENT_ROWS + EARLIER_ROWS)

    def happened(self, tokens_per_round: Iterable[float]) -> bool:
        """Whether it is lower with these rows; after that, rows from before are forgotten."""
        self._rows.extend(tokens_per_round)
        rows = list(self._rows)
        earlier, recent = rows[:-RECENT_ROWS], rows[-RECENT_ROWS:]
        if len(earlier) < LEAST_EARLIER:
            return False
        noise = variance(earlier) / len(earlier) + variance(recent) / len(recent)
        drop = fmean(earlier) - fmean(recent)
        if drop <= SIGMAS * noise**0.5:
            return False
        self._rows = deque(recent, maxlen=RECENT_ROWS + EARLIER_ROWS)
        return True
