"""Prefill: new rows' prompts are read before their first round, between the rounds of the rows that decode already.

While no row decodes, prompts are read at once. Otherwise they are read in parts between rounds, so that prefill takes
at most the scheduler's ``prefill_share`` of the time, and a row joins the rounds once its prompt is read.
"""

from __future__ import annotations

import torch

from specdec.alignment.base import Alignment
from specdec.alignment.reader import Reader
from specdec.core.clock import Clock
from specdec.core.sequence import Sequence
from specdec.drafters.base import Drafter

MIN_TOKENS = 64  # of a part: smaller ones would pay the fixed cost of a forward too often
FIRST_TOKENS, MAX_TOKENS = 256, 8192
SAVED_ROUNDS = 4  # unused prefill time is carried over for at most this many rounds


class PrefillBudget:
    """How many prompt tokens may be read before the next round.

    A power of two, doubled or halved by how long the last read took, so it needs no cost model. Time that a read took
    beyond its allowance is paid back by rounds without prefill, so the share holds over time.
    """

    def __init__(self, share: float) -> None:
        self._ratio = share / (1 - share)  # seconds of reading per second of decoding
        self._tokens = FIRST_TOKENS
        self._allowance_s = 0.0
        self._credit_s = 0.0

    def tokens(self) -> int:
        """Tokens that may be read now; 0 while a debt is paid back."""
        return self._tokens if self._credit_s >= 0 else 0

    def read(self, seconds: float, num_tokens: int) -> None:
        """Count a read of ``num_tokens`` that took ``seconds``."""
        self._credit_s -= seconds
        if seconds > self._allowance_s:
            self._tokens = max(self._tokens // 2, MIN_TOKENS)
        elif 2 * seconds < self._allowance_s and num_tokens >= self._tokens:
            self._tokens = min(self._tokens * 2, MAX_TOKENS)

    def decoded(self, seconds: float) -> None:
        """Count a round that took ``seconds``, without its prefill."""
        self._allowance_s = self._ratio * seconds
        self._credit_s = min(self._credit_s + self._allowance_s, SAVED_ROUNDS * self._allowance_s)


class Prefill:
    """Reads prompts into the caches of target and draft.

    Args:
        share: of the time, at most, while other rows wait; 1 reads prompts whole.
        chunk: tokens of a prompt per forward, at most, to bound a forward's memory; None: no bound.
    """

    def __init__(self, target: Alignment, drafter: Drafter, clock: Clock, share: float, chunk: int | None) -> None:
        self._target = Reader(target, drafter.observe_hidden, drafter.hidden_layers)
        self._drafter = drafter
        self._clock = clock
        self._budget = PrefillBudget(share) if share < 1 else None
        self._chunk = chunk
        self._unread: dict[int, int] = {}  # tokens still to read, of rows whose prompts are not read to the end

    def ready(self, rows: list[Sequence], drafting: bool) -> list[Sequence]:
        """Continue reading the prompts of ``rows``; returns the rows that can decode now, at least one.

        While no row drafts (``drafting`` is false) the drafter reads nothing; it catches up when it drafts again.
        """
        new = [row for row in rows if row.admitted_s is None]
        if not new and not self._unread:
            return rows
        with self._clock.stage("prefill"):
            self._admit(new)
            reading = [row for row in rows if row.index in self._unread]
            if self._budget is None or len(reading) == len(rows):
                self._read(reading, None, drafting)
            elif reading and (limit := self._budget.tokens()):
                start = self._clock.now()
                num_tokens = self._read(reading, limit, drafting)
                if self._target.alignment.model.device.type == "cuda":
                    torch.cuda.synchronize()
                self._budget.read(self._clock.now() - start, num_tokens)
        return [row for row in rows if row.index not in self._unread]

    def decoded(self, seconds: float) -> None:
        """Count a round's own time, of which the budget is a share."""
        if self._budget is not None:
            self._budget.decoded(seconds)

    def _admit(self, rows: list[Sequence]) -> None:
        now = self._clock.now()
        for row in rows:
            row.admitted_s = now
            self._unread[row.index] = len(row.prompt_ids) - 1  # the last token is fed by the first round
        if rows:
            self._drafter.admit(rows)

    def _read(self, rows: list[Sequence], limit: int | None, drafting: bool) -> int:
        """Feed up to ``limit`` tokens, first come, first served; returns how many were fed."""
        num_fed = 0
        while rows and (limit is None or num_fed < limit):
            stops = []
            for row in rows:
                left = self._unread[row.index]
                count = min(left, self._chunk or left)
                if limit is not None:
                    count = min(count, limit - num_fed)
                num_fed += count
                self._unread[row.index] = left - count
                stops.append(len(row.prompt_ids) - 1 - self._unread[row.index])
            self._target.read(rows, stops)
            stops = [max(stop, self._target.length(row)) for row, stop in zip(rows, stops, strict=True)]
            for row, stop in zip(rows, stops, strict=True):  # what rows share is read at once
                self._unread[row.index] = max(len(row.prompt_ids) - 1 - stop, 0)
            if drafting:
                self._drafter.read(rows, stops)
            done = [row for row in rows if not self._unread[row.index]]
            if done and self._drafter.probe_ids:
                self._target.probe(done, self._drafter.probe_ids, self._drafter.probes_MD)
            for row in done:
                del self._unread[row.index]
            rows = [row for row in rows if row.index in self._unread]
        return num_fed

    def release(self, rows: list[Sequence]) -> None:
        """Free the target's caches of rows."""
        self._target.release(rows)
