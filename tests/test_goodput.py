"""Goodput on scripted costs and acceptance, which are given to it as rounds: worlds without models."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from statistics import mean, median, mode

import pytest

from specdec.draft_lengths.acceptance import PRIOR_RATE, Acceptance
from specdec.draft_lengths.base import DraftLength
from specdec.draft_lengths.costs import RoundCosts
from specdec.draft_lengths.goodput import KEPT_AT_FIRST, KEPT_ROUNDS, GoodputLength
from specdec.draft_lengths.probes import SHORTEST_PAUSE, Probes
from specdec.engine import Round
from specdec.errors import ConfigError
from specdec.sequence import Sequence

READ_S = 0.0002  # of the draft, per token


@dataclass
class World:
    """Decoding without models: rows that accept at a set rate, rounds that cost what is said, continuous batches."""

    rate: Callable[[int], float]  # chance that a drafted token is accepted, by round
    plain_s: Callable[[int], float]  # a round without a draft, by its number of rows
    step_s: Callable[[int], float]  # what each drafted step adds
    noise: float = 0.0
    length: int = 64
    random: random.Random = field(default_factory=lambda: random.Random(0))
    seconds: float = 0.0
    tokens: int = 0
    gammas: list[int] = field(default_factory=list)  # longest draft of every round

    def run(self, policy: DraftLength, batch: int, num_rounds: int) -> float:
        """Tokens per second; the draft reads rows that it lags behind of, and newcomers where the policy drafts."""
        rows: list[Sequence] = []
        read_to: dict[int, int] = {}
        number = 0
        for turn in range(num_rounds):
            seconds = 0.0
            while len(rows) < batch:
                rows.append(Sequence(number, [1] * 50, self.length))
                read_to[number] = 50 if policy.drafting else 0
                seconds += READ_S * read_to[number]
                number += 1
            wished = policy.choose(rows)
            asked = [min(gamma, row.num_remaining - 1) for gamma, row in zip(wished, rows, strict=True)]
            accepted, emitted, reading = [], [], 0
            for row, gamma in zip(rows, asked, strict=True):
                if gamma:
                    reading += row.length - read_to[row.index]
                right = next((i for i in range(gamma) if self.random.random() > self.rate(turn)), gamma)
                accepted.append(right)
                emitted.append(row.emit([1] * (right + 1)))
                if gamma:
                    read_to[row.index] = row.length
            steps = max(asked)
            drafting = sum(map(bool, asked)) / len(asked)
            noise = 1 + self.noise * self.random.random() ** 4
            stages = {
                "draft": READ_S * reading + steps * self.step_s(len(rows)) * (0.5 + 0.5 * drafting) * noise,
                "verify": self.plain_s(len(rows)) * noise,
                "prefill": seconds,
            }
            outcome = Round(list(rows), asked, accepted, emitted, False, stages, [r for r in rows if r.finished])
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


@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("rate", [0.3, 0.7, 0.9])
def test_goodput_comes_near_the_best_fixed_length(rate, batch):
    """On the average of a few runs: 0.86 to 1.00 of the best are seen among single ones (rate 0.3, batch 1)."""

    def speed(make: Callable[[], DraftLength]) -> float:
        worlds[:] = [memory_bound(rate) for _ in range(4)]
        for seed, world in enumerate(worlds):
            world.random = random.Random(seed)
        return mean(world.run(make(), batch, 400) for world in worlds)

    worlds: list[World] = []
    best, gamma = max((speed(partial(Always, gamma)), gamma) for gamma in (0, 1, 2, 4, 6, 8))
    plain = speed(partial(Always, 0))
    assert speed(GoodputLength) > 0.93 * best
    if best > 1.2 * plain:  # below that, it may as well stay off
        assert abs(median(mode(world.gammas[200:]) for world in worlds) - gamma) <= 2


@pytest.mark.parametrize("batch", [1, 4, 32])
@pytest.mark.parametrize("rate", [0.0, 0.7])
def test_goodput_costs_next_to_nothing_where_drafting_does_not_pay(rate, batch):
    plain = compute_bound(rate).run(Always(0), batch, 600)
    world = compute_bound(rate)
    assert world.run(GoodputLength(), batch, 600) > 0.975 * plain
    assert sum(map(bool, world.gammas[100:])) == 0, "no acceptance would make it pay, so it is not probed for"


def test_a_useless_draft_is_switched_off_and_probed_for_a_share_of_the_time():
    world, policy = memory_bound(0.02), GoodputLength(probe_share=0.01)
    plain = memory_bound(0.02).run(Always(0), 8, 2000)
    assert world.run(policy, 8, 2000) > 0.98 * plain
    assert not policy.drafting
    probes = [turn for turn in range(1, 2000) if world.gammas[turn] and not world.gammas[turn - 1]]
    assert len(probes) >= 2
    assert all(later - earlier > SHORTEST_PAUSE for earlier, later in pairwise(probes))


def test_drafting_comes_back_when_acceptance_rises():
    world = memory_bound(0.0)
    world.rate = lambda turn: 0.02 if turn < 400 else 0.9
    policy = GoodputLength()
    world.run(policy, 4, 2500)
    assert policy.drafting
    assert world.gammas[350:400].count(0) > 45
    assert sum(world.gammas[-100:]) / 100 > 3


def test_a_row_that_accepts_little_drafts_less_than_its_neighbours():
    acceptance = Acceptance()
    assert PRIOR_RATE < acceptance.rate(0) < PRIOR_RATE + 0.2, "the benefit of the doubt"
    policy = GoodputLength()
    policy.acceptance = acceptance
    for _ in range(40):
        acceptance.observe(0, 4, 0)
        acceptance.observe(1, 4, 4)
    assert acceptance.rate(0) < 0.3 < 0.8 < acceptance.rate(1)
    rows = [Sequence(index, [1], 50) for index in range(2)]
    for gamma, seconds in ((0, 1.0), (0, 1.0), (0, 1.0), (4, 1.2)):
        policy.costs.observe(2, gamma, seconds)
    low, high = policy.choose(rows)
    assert 1 <= low < high
    acceptance.forget(0)
    assert low < policy.choose(rows)[0] <= high


def test_a_length_that_no_round_has_had_is_believed_less(monkeypatch):
    """Drafting begins with what was measured, unless a longer draft promises clearly more."""

    def first_choice(rate: float) -> int:
        policy = GoodputLength()
        policy.acceptance.rate = lambda row: rate
        policy.acceptance.chances = lambda row, length: [rate] * length
        for gamma, seconds in [(0, 1.0)] * 5 + [(2, 1.3)]:
            policy.costs.observe(2, gamma, seconds)
        return max(policy.choose([Sequence(index, [1], 50) for index in (1, 2)]))

    rates = (0.56, 0.58, 0.6, 0.97)
    careful = [first_choice(rate) for rate in rates]
    monkeypatch.setattr("specdec.draft_lengths.goodput.GUESS_TRUST", 1.0)
    careless = [first_choice(rate) for rate in rates]
    assert careful[:3] == [2, 2, 2]
    assert careless[2] > 2
    assert careful[3] == careless[3] == 8


@pytest.mark.parametrize(("batch", "asked"), [(1, 1), (4, 4), (8, 4), (32, 8), (64, 16)])
def test_a_probe_asks_a_few_rows_or_a_share_of_them(batch, asked):
    rows = [Sequence(index, [1], 50) for index in range(batch)]
    probes = Probes(0.01)
    probes.start(rows, first=True)
    assert sum(map(probes.includes, rows)) == asked


def test_a_choice_that_was_never_tried_is_looked_at_again_soon_and_saves_what_is_believed():
    policy, rows = GoodputLength(), [Sequence(index, [1], 500) for index in (1, 2)]
    policy.acceptance.chances = lambda row, length: [0.95] * length
    for gamma, seconds in [(0, 1.0)] * 5 + [(2, 1.01)]:
        policy.costs.observe(2, gamma, seconds)
    policy._expected, policy._emitted = 1000.0, 900.0
    gamma = max(policy.choose(rows))
    assert gamma == 8
    assert policy._decision.rounds_left == KEPT_AT_FIRST
    best = max(policy._goodputs(rows, [[0.95] * 8] * 2))
    assert policy._decision.saving_s == pytest.approx(1 / 2.0 - 1 / (0.9 * best))
    policy.costs.observe(2, 8, 1.02)
    policy._decision.rounds_left = 0
    assert max(policy.choose(rows)) == 8
    assert policy._decision.rounds_left == KEPT_ROUNDS


def test_what_drafting_rounds_gave_corrects_what_is_expected_of_them():
    """Costs and acceptance look right one by one, and rounds emit a tenth of what follows from them all the same."""
    policy, rows = GoodputLength(), [Sequence(0, [1], 1000)]
    for gamma, seconds in ((0, 1.0), (0, 1.0), (0, 1.0), (4, 1.2)):
        policy.costs.observe(1, gamma, seconds)
    for _ in range(40):
        policy.acceptance.observe(0, 4, 4)
    assert policy.choose(rows)[0] > 0
    for _ in range(60):
        policy._compare(expected=30.0, emitted=3)
    policy._decision.rounds_left = 0
    rates = policy._goodputs(rows, [policy.acceptance.chances(0, policy.max_gamma)])
    assert max(rates) > 1.05 * rates[0], "by its estimates alone it would go on"
    assert policy.choose(rows) == [0]


def test_a_row_that_is_about_to_end_is_not_read_for_its_last_tokens():
    policy = GoodputLength()
    for gamma, seconds in ((0, 1.0), (0, 1.0), (0, 1.0), (4, 1.2)):
        policy.costs.observe(2, gamma, seconds)
    for row in (0, 1):
        for _ in range(40):
            policy.acceptance.observe(row, 4, 4)
    policy.reading.postpone(51.2, 100)  # half a second for each token that the draft has to read
    policy.reading.settle(0.8, 2)
    assert policy.reading.s_per_token == pytest.approx(0.5)
    ending, beginning = Sequence(0, [1] * 40, 2), Sequence(1, [1] * 40, 200)
    wished = policy.choose([ending, beginning])
    assert wished[0] == 0
    assert wished[1] > 0
    assert policy.drafting, "newcomers' prompts are read from now on"
    assert GoodputLength().reading.repays(ending, 0.0, usual=9), "as long as no reading was measured, none is feared"


def test_costs_are_medians_and_a_line_between_what_was_measured():
    costs = RoundCosts()
    with pytest.raises(ValueError, match="no plain round"):
        costs.estimate(1, 0)
    for seconds in (1.0, 1.0, 50.0):
        costs.observe(4, 0, seconds)
    assert costs.estimate(4, 0) == 1.0
    assert costs.estimate(8, 0) == 1.5, "half fixed, half proportional, as long as nothing else is known"
    costs.observe(8, 0, 3.0)
    assert costs.estimate(6, 0) == 2.0
    with pytest.raises(ValueError, match="no round with a draft"):
        costs.estimate(4, 2)
    costs.observe(4, 2, 1.5)
    assert costs.estimate(4, 4) == pytest.approx(1.85), "a part of what the draft adds comes with its first step"
    assert costs.estimate(8, 2) == pytest.approx(4.5)
    costs.observe(4, 4, 1.8)
    assert costs.estimate(4, 6) == pytest.approx(2.1), "a line through the nearest two"
    costs.observe(4, 4, 1.4)
    costs.observe(4, 4, 1.4)
    assert costs.estimate(4, 6) == pytest.approx(1.4), "more steps never cost less"


def test_later_places_of_a_draft_are_accepted_as_they_were():
    acceptance = Acceptance()
    for _ in range(200):  # half of the drafts fail at once, the others are accepted whole
        acceptance.observe(0, 4, 0)
        acceptance.observe(0, 4, 4)
    chances = acceptance.chances(0, 6)
    assert chances[0] == pytest.approx(0.5, abs=0.1)
    assert min(chances[1:4]) > 0.85
    assert chances[4] == chances[5] == chances[3], "where nothing was tried, as the place before"
    assert Acceptance().chances(0, 2) == [Acceptance().rate(0)] * 2


@pytest.mark.parametrize("settings", [{"max_gamma": 0}, {"probe_share": 1.0}])
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ConfigError, match=f"draft_length.{next(iter(settings))}="):
        GoodputLength(**settings)
