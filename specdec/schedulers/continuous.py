"""Continuous batching: a finished row's place is taken by the next prompt, in the next round.

Idea: no place stays empty until the slowest row of a batch ends. New rows are prefilled between the rounds of the
others, in chunks that take at most ``prefill_share`` of the time (specdec.engine.prefill).
Source: iteration-level scheduling, Yu et al. 2022 (Orca, OSDI); chunked prefill, Agrawal et al. 2023 (arXiv
2308.16369).
"""

from __future__ import annotations

from specdec.core.sequence import Sequence, SequencePool
from specdec.errors import ConfigError
from specdec.schedulers.base import Scheduler


class ContinuousScheduler(Scheduler):
    """Keeps ``batch`` rows active as long as prompts wait."""

    def __init__(self, batch: int, window: int, *, prefill_share: float = 0.75) -> None:
        if not 0 < prefill_share <= 1:
            raise ConfigError(f"scheduler.prefill_share={prefill_share}: it must be above 0 and at most 1")
        self.batch = batch
        self.prefill_share = prefill_share

    def select(self, pool: SequencePool) -> list[Sequence]:
        pool.activate(self.batch - len(pool.active))
        return list(pool.active)
