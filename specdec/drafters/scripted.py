"""Replays the reference output, wrong with a set chance at each position, for benchmarks at any acceptance rate.

Whether the draft is right at a position is decided by the row's own random number for it, so all methods that are
compared get the same right and wrong drafts, whatever their batches. A share ``rate`` of the drafted tokens that are
reached is right; the acceptance rate over all drafted tokens is lower, because none after a wrong one is accepted.
"""

from __future__ import annotations

from specdec.core.random_numbers import SCRIPT, uniforms
from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.drafters.base import Drafter
from specdec.drafters.chain import chosen_chains
from specdec.drafters.context import DrafterContext
from specdec.errors import ConfigError
from specdec.models.vocabulary import check_ids


class ScriptedDrafter(Drafter):
    """Drafts the reference output with seeded mistakes."""

    def __init__(self, context: DrafterContext, *, rate: float, seed: int) -> None:
        if not 0 <= rate <= 1:
            raise ConfigError(f"drafter.rate={rate}: it must be from 0 to 1")
        self._context = context
        self._rate = rate
        self._seed = seed
        self._outputs: dict[int, list[int]] = {}

    def admit(self, rows: list[Sequence]) -> None:
        for row in rows:
            known = self._context.known_output(row) if self._context.known_output else None
            if known is None:
                raise ConfigError("drafter=scripted replays known outputs: set reference=true")
            check_ids(f"the known output of row {row.index}", known, self._context.target.vocab_size)
            self._outputs[row.index] = known

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        starts = [len(row.output_ids) for row in rows]
        places = [range(start, start + max(gammas)) for start in starts]
        keys = [(self._seed, row.index) for row in rows]
        numbers_BG = uniforms(keys, places, SCRIPT, [0] * max(gammas)).tolist()
        drafts = []
        for row, start, gamma, numbers in zip(rows, starts, gammas, numbers_BG, strict=True):
            known = self._outputs[row.index][start : start + gamma]
            drafts.append([t if u < self._rate else self._wrong(t) for t, u in zip(known, numbers, strict=False)])
        return chosen_chains(drafts, self._context.device)

    def release(self, rows: list[Sequence]) -> None:
        for row in rows:
            del self._outputs[row.index]

    def _wrong(self, token: int) -> int:
        return (token + 1) % self._context.target.vocab_size
