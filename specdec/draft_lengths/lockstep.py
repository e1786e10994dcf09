"""One draft length for the whole batch, cut to the row with the least budget left, as in DSD and EQSPEC's code.

Exact, but rows near their budget slow the others down, and a row's draft depends on the other rows.
Source: Yan, Agarwal, Venkataraman 2024, arXiv 2402.01528; the reference code of arXiv 2510.22876 does the same.
"""

from __future__ import annotations

from specdec.core.sequence import Sequence
from specdec.draft_lengths.base import DraftLength
from specdec.errors import ConfigError


class LockstepLength(DraftLength):
    """Drafts ``gamma`` tokens, or fewer for all rows if one of them may emit no more."""

    def __init__(self, *, gamma: int = 5) -> None:
        if gamma < 0:
            raise ConfigError(f"draft_length.gamma={gamma}: it must be 0 or more")
        self.gamma = gamma

    def choose(self, rows: list[Sequence]) -> list[int]:
        # Every round also emits one token that was not drafted.
        return [min(self.gamma, *(row.num_remaining - 1 for row in rows))] * len(rows)
