"""Decoding without models: scripted costs and acceptance, given to a draft-length policy as rounds."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from specdec.core.round import Round
from specdec.core.sequence import Sequence
from specdec.draft_lengths.base import DraftLength

READ_S = 0.0002  # of the draft, per token
STOP = 2


@dataclass
class World:
    """Decoding without models: rows that accept at a set rate, rounds that cost what is said, continuous batches."""

    rate: Callable[[int], float]  # chance that a drafted token is accepted, by round
    plain_s: Callable[[int], float]  # a round without a draft, by its number of rows
    step_s: Callable[[int], float]  # what each drafted step adds
    noise: float = 0.0
    length: int = 64
    stop_at: int | None = None  # output tokens after which a row ends by itself
    read_s: float = READ_S
    finds: float = 1.0  # chance that the drafter has anything to propose for a row
    numbers: int = 0  # of the first row
    random: random.Random = field(default_factory=lambda: random.Random(0))
    seconds: float = 0.0
    tokens: int = 0
    gammas: list[int] = field(default_factory=list)  # longest draft of every round

    def words(self, start: int, count: int) -> list[int]:
        """So many tokens behind the first ``start``."""
        return [STOP if start + i + 1 == self.stop_at else 1 for i in range(count)]

    def run(self, policy: DraftLength, batch: int, num_rounds: int) -> float:
        """Tokens per second; the draft reads rows that it lags behind of, and newcomers where the policy drafts."""
        rows: list[Sequence] = []
        read_to: dict[int, int] = {}
        number = self.numbers
        for turn in range(num_rounds):
            seconds = 0.0
            while len(rows) < batch:
                rows.append(Sequence(number, [1] * 50, self.length, stop_ids=frozenset({STOP})))
                read_to[number] = 50 if policy.drafting else 0
                seconds += self.read_s * read_to[number]
                number += 1
            wished = policy.choose(rows)
            asked = [min(gamma, row.num_remaining - 1) for gamma, row in zip(wished, rows, strict=True)]
            drafted = [gamma if self.finds == 1 or self.random.random() < self.finds else 0 for gamma in asked]
            accepted, emitted, reading = [], [], 0
            for row, gamma in zip(rows, drafted, strict=True):
                if gamma:
                    reading += row.length - read_to[row.index]
                right = next((i for i in range(gamma) if self.random.random() > self.rate(turn)), gamma)
                accepted.append(right)
                emitted.append(row.emit(self.words(len(row.output_ids), right + 1)))
                if gamma:
                    read_to[row.index] = row.length
            steps = max(drafted)
            drafting = sum(map(bool, drafted)) / len(drafted)
            noise = 1 + self.noise * self.random.random() ** 4
            stages = {
                "draft": self.read_s * reading + steps * self.step_s(len(rows)) * (0.5 + 0.5 * drafting) * noise,
                "verify": self.plain_s(len(rows)) * noise,
                "prefill": seconds,
            }
            outcome = Round(list(rows), drafted, accepted, emitted, False, stages, [r for r in rows if r.finished])
            policy.observe(outcome)
            rows = [row for row in rows if not row.finished]
            self.seconds += sum(stages.values())
            self.tokens += sum(map(len, emitted))
            self.gammas.append(steps)
        return self.tokens / self.seconds


@dataclass
class Always(DraftLength):
    """A fixed gamma to compare with."""

    gamma: int
    drafting: bool = False

    def choose(self, rows: list[Sequence]) -> list[int]:
        self.drafting = self.gamma > 0
        return [self.gamma] * len(rows)

    def observe(self, outcome: Round) -> None: ...


def memory_bound(rate: float) -> World:
    """A verification costs the same for any length: drafting pays."""
    return World(lambda turn: rate, lambda rows: 0.01, lambda rows: 0.001, noise=0.3)


def compute_bound(rate: float) -> World:
    """Every drafted token costs as much as a plain one: it cannot."""
    return World(lambda turn: rate, lambda rows: 0.01 * rows, lambda rows: 0.011 * rows, noise=0.3)
