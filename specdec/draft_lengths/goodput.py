"""Goodput: the draft length of the most tokens per second, from what rounds have accepted and what they have cost.

Idea: a round of gamma drafted steps emits, per row, 1 + a1 + a1 a2 + ... tokens if the places of its draft are accepted
with chances a1, a2, ..., and costs what rounds of that shape have cost so far. The gamma of the best quotient wins, and
0 is one of them: then nothing is drafted, the draft's cache stays behind, and a round is a plain one. A row whose cache
would have to be brought up first drafts only if that takes clearly less time than drafting saves on the rest of its
output: so drafting is not switched on for rows that are about to end, and comes with the newcomers. What was read is
read: rows that have paid for it go on drafting for as long as that alone pays.
It begins with what a few rounds have shown before the clock started, once per pair and device and kept on disk. Without
them (``profile=False``, or nobody called prepare) it begins with plain rounds and a probe.
The best of several estimates is seldom as good as it looks: what drafting rounds really emit, as a share of what was
expected of them, corrects what is expected of the next ones, and lengths beyond all that were measured count less.
Rows that are in step, and would end and be refilled together, are left so unless drafting gains clearly more: out of
step they are refilled one by one, and places stand empty at the end.
While it is off, a few rows draft now and then (a probe), to see whether acceptance has risen: after longer and longer
pauses, and never for more than ``probe_share`` of the time.
Rows that accept little draft fewer of the gamma tokens: only as many as have a fair chance to be reached.
Source: Liu et al. 2024 (SmartSpec, arXiv 2406.14066) for goodput as the aim; costs are measured all the time and not
fitted offline. The choice follows the clock, so it is not the same in every run; greedy output is, whatever gamma is.
Sampled tokens depend on gamma under verifier=rejection and block, and only their law is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from specdec.core.sequence import Sequence
from specdec.draft_lengths.acceptance import Acceptance
from specdec.draft_lengths.base import DraftLength
from specdec.draft_lengths.costs import RoundCosts
from specdec.draft_lengths.probes import MOST_ROUNDS, PROBE_STEPS, ROUNDS, Probes, num_asked
from specdec.draft_lengths.profile import Profile, by_place
from specdec.draft_lengths.reading import ReadingCosts
from specdec.errors import ConfigError

if TYPE_CHECKING:
    from specdec.core.round import Round
    from specdec.draft_lengths.profile import Profiler

PLAIN_FIRST = 5  # plain rounds that are measured before anything is drafted, where no profile is known
PLAIN_SOON = 2  # that are measured soon where a profile says to draft, because all that is saved is measured by them
DRAFT_SCALING = 0.5  # a drafted step of n times as many rows is expected to take n to this power as long
GAIN_TO_START, GAIN_TO_STAY = 1.05, 0.98
IN_STEP = 8  # rounds between the first and the last end of rows that are in step
OUT_OF_STEP = 1.12  # the gain that is lost where rows that would end together come to end one by one
KEPT_ROUNDS, KEPT_AT_FIRST = 7, 1  # more rounds of a batch size that a choice is kept for; if its costs are a guess
LEAST_CHANCE = 0.05  # that a drafted token is reached and accepted; what is less likely is not drafted
GUESS_TRUST = 0.97  # of what is expected of drafts longer than any that was measured is believed
FIRST_TRUST = 0.95  # of what is expected is believed before any round of this run has drafted
TRUST_TOKENS, TRUST_MEMORY = 64.0, 1024.0  # expected tokens that this belief weighs, and that are remembered
BEST_RATE = 0.98  # if not even such acceptance pays, there is nothing to probe for


class GoodputLength(DraftLength):
    """See the module's text.

    Args:
        max_gamma: longest draft considered.
        probe_share: of the time, at most, that probes may cost.
        profile: begin with what a few rounds show that are made before the run.
    """

    def __init__(self, *, max_gamma: int = 8, probe_share: float = 0.01, profile: bool = True) -> None:
        if max_gamma < 1:
            raise ConfigError(f"draft_length.max_gamma={max_gamma}: it must be at least 1")
        if not 0 <= probe_share < 1:
            raise ConfigError(f"draft_length.probe_share={probe_share}: it must be from 0 to below 1")
        self.max_gamma = max_gamma
        self.profile = profile
        self.drafting = False
        self.acceptance = Acceptance()
        self.costs = RoundCosts()
        self.reading = ReadingCosts()
        self._probes = Probes(probe_share)
        self._decision = _Decision(0, 0)
        self._expected, self._emitted = TRUST_TOKENS, FIRST_TRUST * TRUST_TOKENS  # tokens of drafting rounds, fading
        self._asked: list[int] = []  # gammas of the round, as cut to what the rows may still emit

    def prepare(self, profiler: Profiler, batch: int) -> None:
        """Read what is known of the pair, or measure it: some seconds per batch size, the first time."""
        if not self.profile:
            return
        profile = Profile(profiler)
        profile.complete(batch, self.max_gamma)
        trials = profile.of(batch, self.max_gamma)
        for size, by_gamma in trials.items():
            for gamma, trial in by_gamma.items():
                self.costs.believe(size, gamma, trial.draft_s + trial.verify_s)
        self.reading.believe(trials[batch][0].read_s)
        tried, accepted = by_place(trials, "tried"), by_place(trials, "accepted")
        if sum(tried):  # a drafter may have had nothing to propose
            self.acceptance.believe(tried, accepted)
            self.max_gamma = min(self.max_gamma, len(tried))  # some drafters have a longest draft of their own

    def choose(self, rows: list[Sequence]) -> list[int]:
        """The best gamma at this batch size and acceptance, cut per row; zeros while drafting does not pay."""
        self.reading.meet(rows, already_read=self.drafting)
        wished = self._wish(rows)
        self._asked = [min(gamma, row.num_remaining - 1) for gamma, row in zip(wished, rows, strict=True)]
        return wished

    def observe(self, outcome: Round) -> None:
        """Learn what the round accepted and what it cost."""
        num_steps = max(self._asked, default=0)
        seconds = sum(value for stage, value in outcome.seconds.items() if stage != "prefill")
        num_lacking = self.reading.lacking(outcome, self._asked, usual=self.max_gamma + 1)
        if num_lacking:
            self.reading.postpone(outcome.seconds["draft"], num_lacking)
        else:
            if num_steps:
                self.reading.settle(outcome.seconds["draft"], num_steps)
            # A probe's draft counts as if all rows had drafted.
            num_drafting = sum(map(bool, self._asked))
            scale = (len(self._asked) / num_drafting) ** DRAFT_SCALING if self._probes.running and num_drafting else 1.0
            seconds_of_all = seconds + (scale - 1) * outcome.seconds["draft"]
            self.costs.observe(len(outcome.rows), num_steps, seconds_of_all)
            self.reading.scale = self.costs.scale
            if num_steps and not self._probes.running:
                self._compare(self._decision.expected, sum(map(len, outcome.emitted)))
        if self._probes.running and self.costs.knows(drafted=True) and not self._could_pay(outcome.rows):
            self._probes.ask_no_longer()
        self._probes.observe(outcome, seconds, self.costs)
        for row, drafted, accepted in zip(outcome.rows, outcome.num_drafted, outcome.num_accepted, strict=True):
            self.acceptance.observe(row.index, drafted, accepted)
        for row in outcome.finished:
            self.acceptance.forget(row.index)
            self.reading.finish(row)

    def _compare(self, expected: float, emitted: int) -> None:
        """Note what a drafting round should have emitted, and what it did."""
        fade = max(1 - expected / TRUST_MEMORY, 0.0)
        self._expected = self._expected * fade + expected
        self._emitted = self._emitted * fade + emitted

    def _wish(self, rows: list[Sequence]) -> list[int]:
        nothing = [0] * len(rows)
        if not self._probes.running:
            explored = self.costs.knows(drafted=True)
            if not explored and self.costs.num_measured(len(rows), 0) < PLAIN_FIRST:
                return nothing
            gamma = self._decide(rows) if explored else 0
            self.drafting = gamma > 0 and self.reading.newcomers_repay(self._decision.saving_s)
            if gamma:
                self._probes.reset()
                half = len(rows) / 2
                if self.costs.num_rounds(False, half) < PLAIN_SOON <= self.costs.num_rounds(True, half):
                    return nothing
                return [self._reachable(row, gamma) if self._repays(row) else 0 for row in rows]
            if explored and not self._probes.rested:
                return nothing
            able = self._cheapest_to_ask(rows)
            if explored and not (self._probes.affordable(self._probe_s(rows, able)) and self._could_pay(rows)):
                return nothing
            self._probes.start(able, len(rows), first=not explored)
            if explored:  # what went wrong once is believed less with each probe
                self._expected, self._emitted = TRUST_TOKENS, TRUST_TOKENS * (1 + self._trust) / 2
        self._decision = _Decision(0, 0)
        return [min(PROBE_STEPS, self.max_gamma) if self._probes.includes(row) else 0 for row in rows]

    def _cheapest_to_ask(self, rows: list[Sequence]) -> list[Sequence]:
        """Rows that can draft: those of which the draft lacks least first, and those that are about to end last."""
        able = [row for row in rows if row.num_remaining > 1]
        return sorted(able, key=lambda row: (row.num_remaining <= MOST_ROUNDS, self.reading.lag(row)))

    def _probe_s(self, rows: list[Sequence], able: list[Sequence]) -> float:
        """What a probe is expected to cost, as long as none was measured."""
        drafting_s = self.costs.estimate(len(rows), PROBE_STEPS) - self.costs.estimate(len(rows), 0)
        lacking = sum(map(self.reading.lag, able[: num_asked(len(rows))]))
        return ROUNDS * drafting_s + lacking * self.reading.s_per_token

    def _decide(self, rows: list[Sequence]) -> int:
        """The gamma of the most tokens per second, 0 unless another is clearly better; kept for a few rounds."""
        if self._decision.num_rows == len(rows) and self._decision.rounds_left > 0:
            self._decision.rounds_left -= 1
            return self._decision.gamma
        chances = [self.acceptance.chances(row.index, self.max_gamma) for row in rows]
        goodputs = self._goodputs(rows, chances)
        saving_s = max(1 / goodputs[0] - 1 / (self._trust * max(goodputs)), 0.0)
        start = GAIN_TO_START * (OUT_OF_STEP if _in_step(rows) else 1.0)
        needed = GAIN_TO_STAY if self._decision.gamma else start
        self._decision = _Decision(len(rows), 0, KEPT_ROUNDS, saving_s)
        nothing = [0.0] * self.max_gamma
        chances = [c if self._repays(row) else nothing for row, c in zip(rows, chances, strict=True)]
        goodputs = self._goodputs(rows, chances)
        longest = self.costs.longest
        believed = [g if gamma <= longest else GUESS_TRUST * g for gamma, g in enumerate(goodputs)]
        best = max(range(1, self.max_gamma + 1), key=believed.__getitem__)
        if self._trust * believed[best] > needed * believed[0]:
            self._decision.gamma, self._decision.expected = best, self._tokens(rows, chances)[best]
            self._decision.rounds_left = KEPT_ROUNDS if self.costs.sure(len(rows), best) else KEPT_AT_FIRST
        return self._decision.gamma

    def _repays(self, row: Sequence) -> bool:
        return self.reading.repays(row, self._decision.saving_s, usual=self.max_gamma + 1)

    @property
    def _trust(self) -> float:
        return min(self._emitted / self._expected, 1.0)

    def _goodputs(self, rows: list[Sequence], chances: list[list[float]]) -> list[float]:
        """Expected tokens per second of rounds with 0 to max_gamma drafted steps, if nothing has to be read."""
        tokens = self._tokens(rows, chances)
        return [emitted / self.costs.estimate(len(rows), gamma) for gamma, emitted in enumerate(tokens)]

    def _tokens(self, rows: list[Sequence], chances: list[list[float]]) -> list[float]:
        """Expected tokens of the same rounds."""
        emitted = [0.0] * (self.max_gamma + 1)
        for row, at_places in zip(rows, chances, strict=True):
            tokens = chance = 1.0
            emitted[0] += tokens
            for gamma in range(1, self.max_gamma + 1):
                if gamma < row.num_remaining:
                    chance *= at_places[gamma - 1]
                    tokens += chance
                emitted[gamma] += tokens
        return emitted

    def _reachable(self, row: Sequence, gamma: int) -> int:
        """As many of gamma tokens as have a fair chance to be reached and accepted, at least one."""
        chance = 1.0
        for length, at_place in enumerate(self.acceptance.chances(row.index, gamma)):
            chance *= at_place
            if chance < LEAST_CHANCE:
                return max(length, 1)
        return gamma

    def _could_pay(self, rows: list[Sequence]) -> bool:
        """Whether the best acceptance that can be hoped for would make drafting pay; if not, why probe?"""
        goodputs = self._goodputs(rows, [[BEST_RATE] * self.max_gamma] * len(rows))
        saving_s = 1 / goodputs[0] - 1 / max(goodputs)
        return max(goodputs) > GAIN_TO_START * goodputs[0] and self.reading.newcomers_repay(saving_s)


def _in_step(rows: list[Sequence]) -> bool:
    """Whether several rows would end in nearly the same plain round; a probe leaves them so."""
    left = [row.num_remaining for row in rows]
    return len(rows) > 1 and max(left) - min(left) <= IN_STEP


@dataclass(slots=True)
class _Decision:
    """The last choice of gamma, the batch size that it was made for, how long it holds, and what it would save."""

    num_rows: int
    gamma: int
    rounds_left: int = 0
    saving_s: float = 0.0  # per emitted token, if all rows drafted
    expected: float = 0.0  # tokens of a round with the chosen gamma
