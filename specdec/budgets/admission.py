"""In which order slots compete, and where the admission ends. Shape letters: B rows, L levels, N slots.

The score of a slot is at most that of the slot before it in its row (the running minimum), so that a level is never
admitted before the levels above it, and its admission asks nothing that its own tokens decide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from specdec.budgets.costs import RoundSeconds
from specdec.budgets.slots import Floats, Ints, Slots


@dataclass(frozen=True, slots=True)
class Queue:
    """The slots of a round from the highest score down; of equal ones the first row's, and a row's own in order."""

    rows_N: Ints
    levels_N: Ints
    tokens_N: Ints  # drafted tokens of each

    @classmethod
    def of(cls, slots: Slots, scores_BL: Floats) -> Queue:
        """All slots by their scores."""
        scores_BL = np.minimum.accumulate(scores_BL, axis=1)
        keys = np.where(slots.nodes_BL > 0, -scores_BL, np.inf).ravel()
        order_N = keys.argsort(kind="stable")[: int((slots.nodes_BL > 0).sum())]
        rows_N, levels_N = np.divmod(order_N, scores_BL.shape[1])
        return cls(rows_N, levels_N, slots.nodes_BL.ravel()[order_N])

    def depths(self, num_rows: int, num_admitted: int) -> list[int]:
        """The depth of each row if the first ``num_admitted`` slots are kept."""
        depths: list[int] = np.bincount(self.rows_N[:num_admitted], minlength=num_rows).tolist()
        return depths

    def within(self, num_tokens: float) -> int:
        """How many slots fit in a number of drafted tokens, one after the other."""
        return int(np.searchsorted(self.tokens_N.cumsum(), num_tokens, side="right"))

    def rates(self, slots: Slots, survival_BL: Floats, seconds: RoundSeconds, ragged: bool) -> Floats:
        """(N + 1): expected tokens per second of a round that keeps the first 0, 1, ... slots."""
        num_rows, num_levels = slots.nodes_BL.shape
        emitted = num_rows + np.concatenate([[0.0], survival_BL[self.rows_N, self.levels_N].cumsum()])
        if ragged:
            tokens = np.concatenate([[0], self.tokens_N.cumsum()]) / num_rows
        else:  # padding is computed: what counts is the widest row
            widths_BL = slots.nodes_BL.cumsum(1)[self.rows_N, self.levels_N]
            tokens = np.concatenate([[0], np.maximum.accumulate(widths_BL)]).astype(float)
        rates: Floats = emitted / seconds.of(num_rows, num_levels, tokens)
        return rates


def first_fall(rates: Floats) -> int:
    """How many slots are admitted if the admission ends where one of them lowers the rate."""
    falls = rates[1:] < rates[:-1]
    return int(falls.argmax()) if falls.any() else len(falls)
