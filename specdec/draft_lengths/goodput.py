"""Goodput: the draft length with the most tokens per second, by measured acceptance and round costs.

Idea: a round of gamma drafted steps emits, per row of acceptance rate a, 1 + a + ... + a^gamma tokens, and costs what
rounds of that shape have cost. The gamma with the best quotient is chosen; 0 means a plain round, in which the draft's
cache falls behind. A row that the draft would have to catch up with drafts only if that takes less time than drafting
saves on the rest of its output, so drafting mostly resumes with new rows. Prefill already done is a sunk cost: rows
that the draft has caught up with go on drafting as long as drafting itself pays.
Trees of several widths (paths, or nodes) are compared in the same way, by estimates of their own: the width and depth
of the best quotient are drafted. Without a profile trees keep their own width.
Estimates start from a profile of the pair, measured before the run and kept on disk. Without one (``profile=False``, or
no prepare()) the run starts with plain rounds and a probe.
Rows that would finish together begin to draft only for a larger gain: drafting makes them finish apart, so their
successors are prefilled one by one and slots idle at the end.
While nothing is drafted, a few rows draft now and then (a probe) to see whether acceptance has risen, for at most
``probe_share`` of the time. What each of these parts earns is measured in experiments/goodput.
Source: Liu et al. 2024 (SmartSpec, arXiv 2406.14066) for goodput as the objective; here costs are measured during the
run instead of fitted offline. The choice depends on the clock, so it differs between runs. Greedy output does not
depend on gamma; sampled tokens do under verifier=rejection and block, where only their distribution is the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log
from typing import TYPE_CHECKING

from specdec.core.sequence import Sequence
from specdec.draft_lengths import probes
from specdec.draft_lengths.acceptance import Acceptance
from specdec.draft_lengths.base import DraftLength
from specdec.draft_lengths.catch_up import CatchUpCosts
from specdec.draft_lengths.costs import RoundCosts
from specdec.draft_lengths.probes import Probes
from specdec.draft_lengths.profile import Profile, by_place
from specdec.errors import ConfigError

if TYPE_CHECKING:
    from specdec.core.round import Round
    from specdec.draft_lengths.profile import Profiler

PLAIN_ROUNDS = 2  # plain rounds measured early in a run, because savings are relative to them
IN_STEP = 8  # rows in step end within this many plain rounds of each other
IN_STEP_GAIN = 1.17  # the least gain for which rows in step begin to draft
KEPT_ROUNDS = 4  # rounds for which a choice is kept while the batch size stays
LEAST_CHANCE = 0.05  # least probability of being accepted for a token to be drafted


class GoodputLength(DraftLength):
    """Chooses the draft length with the most expected tokens per second, row by row and round by round.

    Args:
        max_gamma: longest draft considered.
        probe_share: share of the run's time that probes may cost.
        profile: start from a profile of the pair, which is measured before the run if there is none.
    """

    def __init__(self, *, max_gamma: int = 8, probe_share: float = 0.01, profile: bool = True) -> None:
        if max_gamma < 1:
            raise ConfigError(f"draft_length.max_gamma={max_gamma}: it must be at least 1")
        if not 0 <= probe_share < 1:
            raise ConfigError(f"draft_length.probe_share={probe_share}: it must be from 0 to below 1")
        self.max_gamma = max_gamma
        self.profile = profile
        self.drafting = False
        self._estimates: dict[int | None, _Estimates] = {None: _Estimates()}
        self._use(None)
        self.catch_up = CatchUpCosts(usual=max_gamma + 1)
        self._probes = Probes(probe_share)
        self._choice = _Choice()
        self._num_asked = self._num_drafting = 0  # rows, in rounds in which at least one row drafted
        self._asked: list[int] = []  # draft lengths of the round, cut to what the rows may still emit

    def prepare(self, profiler: Profiler, batch: int) -> None:
        if not self.profile:
            return
        longest = self.max_gamma
        for width, narrower in profiler.narrower.items():
            self._estimates[width] = _Estimates()
            self._use(width)
            self._start(narrower, batch, longest, trees=True)
        self._use(None)
        self._start(profiler, batch, longest, trees=bool(profiler.narrower))

    def _start(self, profiler: Profiler, batch: int, longest: int, trees: bool) -> None:
        """Start the estimates in use from a profile."""
        profile = Profile(profiler)
        profile.complete(batch, longest)
        trials = profile.of(batch, longest)
        for size, by_gamma in trials.items():
            for gamma, trial in by_gamma.items():
                if not gamma or any(trial.tried):  # otherwise it was a plain round
                    self.costs.set_prior(size, gamma, trial.draft_s + trial.verify_s)
        self.catch_up.set_prior(trials[batch][0].read_s)
        tried, accepted = by_place(trials, "tried"), by_place(trials, "accepted")
        if sum(tried):  # a drafter may have had nothing to propose
            self.acceptance.set_prior(sum(tried), sum(accepted))
            self.max_gamma = min(longest, len(tried))  # some drafters have a longest draft of their own
            if trees:
                self.acceptance.set_places(tried, accepted)

    def _use(self, width: int | None) -> None:
        """Decide by the estimates for this width of the trees."""
        self.width, estimates = width, self._estimates[width]
        self.acceptance, self.costs = estimates.acceptance, estimates.costs

    def choose(self, rows: list[Sequence]) -> list[int]:
        self.catch_up.join(rows, prefilled=self.drafting)
        wished = self._wish(rows)
        self._asked = [min(gamma, row.num_remaining - 1) for gamma, row in zip(wished, rows, strict=True)]
        return wished

    def observe(self, outcome: Round) -> None:
        # A drafter may have nothing to propose: what it drafted decides the cost, not what it was asked for.
        num_rows, num_steps = len(outcome.rows), min(max(self._asked), max(outcome.proposed))
        if num_steps:
            self._num_asked += sum(map(bool, self._asked))
            self._num_drafting += sum(map(bool, outcome.proposed))
        seconds = sum(value for stage, value in outcome.seconds.items() if stage != "prefill")
        usual_s = self.costs.estimate(num_rows, num_steps if self.costs.explored else 0) if num_steps else 0.0
        if not self.catch_up.observe(outcome, self._asked, seconds - usual_s):
            for estimates in self._estimates.values():
                if num_steps == 0 or estimates.costs is self.costs:
                    estimates.costs.observe(num_rows, num_steps, seconds)
        self._probes.observe(outcome, seconds, self.costs)
        cut_chances = outcome.cut_chances or [0.0] * num_rows
        drafts = zip(outcome.rows, outcome.depths, outcome.num_accepted, cut_chances, strict=True)
        for row, depth, accepted, cut_chance in drafts:
            # A budget keeps what is likely: without its guess of what it cut, the rate would be that of easy tokens.
            if accepted == depth and cut_chance:
                self.acceptance.observe(row.index, depth + 1, accepted + cut_chance)
            elif depth:
                self.acceptance.observe(row.index, depth, accepted)
        for row in outcome.finished:
            for estimates in self._estimates.values():
                estimates.acceptance.forget(row.index)

    def _wish(self, rows: list[Sequence]) -> list[int]:
        if not self._probes.running:
            if self.costs.explored:
                gamma = self._decide(rows)
                self.drafting = gamma > 0 and self.catch_up.newcomers_repay(self._choice.saving_s, self.costs.scale)
                if gamma:
                    return self._drafts(rows, gamma)
            elif self.costs.num_rounds(False, 0) < PLAIN_ROUNDS:
                return [0] * len(rows)
            able = [row for row in rows if row.num_remaining > 1][: probes.ROWS]
            if self.costs.explored and not self._should_probe(rows, able):
                return [0] * len(rows)
            self._probes.start(able)
        self._choice = _Choice()
        return [min(probes.STEPS, self.max_gamma) if self._probes.includes(row) else 0 for row in rows]

    def _drafts(self, rows: list[Sequence], gamma: int) -> list[int]:
        """Draft lengths of the rows if up to ``gamma`` steps are drafted; zeros if plain rounds must be measured."""
        half = len(rows) / 2
        if self.costs.num_rounds(False, half) < PLAIN_ROUNDS <= self.costs.num_rounds(True, half):
            return [0] * len(rows)
        return [self._reachable(row, gamma) if self._repays(row) else 0 for row in rows]

    def _probe_s(self, rows: list[Sequence], able: list[Sequence]) -> float:
        """Expected cost of a probe."""
        drafting_s = self.costs.estimate(len(rows), probes.STEPS) - self.costs.estimate(len(rows), 0)
        reading_s = sum(map(self.catch_up.lag, able)) * self.catch_up.s_per_token(self.costs.scale)
        return probes.ROUNDS * drafting_s + reading_s

    def _decide(self, rows: list[Sequence]) -> int:
        """The draft length with the most tokens per second, kept for a few rounds."""
        if self._choice.num_rows == len(rows) and self._choice.rounds_left > 0:
            self._choice.rounds_left -= 1
            return self._choice.gamma
        needed = IN_STEP_GAIN if _in_step(rows) and not self._choice.gamma else 1.0
        if len(self._estimates) > 1:
            self._use(max(self._estimates, key=lambda width: self._best_ratio(rows, width)))
        rates = [self.acceptance.rate(row.index) for row in rows]
        goodputs = self._goodputs(rows, rates)
        self._choice = _Choice(len(rows), 0, KEPT_ROUNDS, max(1 / goodputs[0] - 1 / max(goodputs), 0.0))
        repaid = [rate if self._repays(row) else 0.0 for row, rate in zip(rows, rates, strict=True)]
        if repaid != rates:
            goodputs = self._goodputs(rows, repaid)
        best = max(range(self.max_gamma + 1), key=goodputs.__getitem__)
        if goodputs[best] > needed * goodputs[0]:
            self._choice.gamma = best
        return self._choice.gamma

    def _best_ratio(self, rows: list[Sequence], width: int | None) -> float:
        """The goodput of the best draft with trees of this width, relative to plain rounds."""
        self._use(width)
        if not self.costs.explored:
            return 0.0
        goodputs = self._goodputs(rows, [self.acceptance.rate(row.index) for row in rows])
        return max(goodputs) / goodputs[0]

    def _repays(self, row: Sequence) -> bool:
        return self.catch_up.repays(row, self._choice.saving_s, self.costs.scale)

    def _goodputs(self, rows: list[Sequence], rates: list[float]) -> list[float]:
        """Expected tokens per second of rounds with 0 to ``max_gamma`` drafted steps, catching up excluded."""
        tokens = [0.0] * (self.max_gamma + 1)
        for row, rate in zip(rows, rates, strict=True):
            emitted, chance, num_remaining = 0.0, 1.0, row.num_remaining
            for gamma in range(self.max_gamma + 1):
                if gamma < num_remaining:
                    emitted += chance
                    chance *= min(rate * self.acceptance.relative(gamma), 1.0)
                tokens[gamma] += emitted
        share = self._num_drafting / self._num_asked if self._num_asked else 1.0
        return [
            (tokens[0] + share * (emitted - tokens[0])) / self.costs.estimate(len(rows), gamma)
            for gamma, emitted in enumerate(tokens)
        ]

    def _reachable(self, row: Sequence, gamma: int) -> int:
        """As many of ``gamma`` tokens as have a fair chance to be reached and accepted, at least one."""
        rate = self.acceptance.rate(row.index)
        return gamma if rate**gamma >= LEAST_CHANCE else max(int(log(LEAST_CHANCE) / log(max(rate, 1e-9))), 1)

    def _should_probe(self, rows: list[Sequence], able: list[Sequence]) -> bool:
        affordable = self._probes.rested and self._probes.affords(self._probe_s(rows, able))
        return affordable and self._could_pay(rows)

    def _could_pay(self, rows: list[Sequence]) -> bool:
        """Whether drafting would pay if every drafted token were accepted; if not, there is nothing to probe for."""
        goodputs = self._goodputs(rows, [1.0] * len(rows))
        saving_s = 1 / goodputs[0] - 1 / max(goodputs)
        return saving_s > 0 and self.catch_up.newcomers_repay(saving_s, self.costs.scale)


def _in_step(rows: list[Sequence]) -> bool:
    """Whether several rows would end in nearly the same plain round."""
    left = [row.num_remaining for row in rows]
    return len(rows) > 1 and max(left) - min(left) <= IN_STEP


@dataclass(slots=True)
class _Estimates:
    """What is known of drafts whose trees have one width."""

    acceptance: Acceptance = field(default_factory=Acceptance)
    costs: RoundCosts = field(default_factory=RoundCosts)


@dataclass(slots=True)
class _Choice:
    """The last chosen draft length, the batch size that it holds for, and for how many rounds."""

    num_rows: int = 0
    gamma: int = 0
    rounds_left: int = 0
    saving_s: float = 0.0  # per emitted token, if all rows drafted
