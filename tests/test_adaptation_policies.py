"""When a drafter learns: updates are made where they pay, in a world whose rounds take the time that a test says."""

from __future__ import annotations

import math

import torch

from specdec.adaptation.adapting import AdaptingDrafter
from specdec.adaptation.learner import Learner
from specdec.adaptation.policies import UPDATES, Always, Bandit, _Arm
from specdec.core.clock import Clock
from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.drafters.base import Drafter


class World(Learner):
    """A window takes ``rounds`` rounds of a second each; an update saves a share of those above ``least``."""

    arms = ("head", "drafter")

    def __init__(self, clock, saves, costs=(1.0, 4.0), least=16.0):
        self.clock, self.saves, self.costs, self.least = clock, dict(zip(self.arms, saves, strict=True)), costs, least
        self.rounds = self.marked = 24.0
        self.updates, self.seen = [], 0

    def num_rounds(self, rows, *, before=False):
        self.clock.seconds["draft"] += 0.2
        self.seen += before
        mean = 10 * (self.marked if before else self.rounds)
        # Rows differ by more than any update changes them, but those that are compared are the same.
        return [round(mean * (1 + 0.3 * math.sin(i + self.seen))) for i in range(8)]

    def mark(self):
        self.marked = self.rounds

    def restore(self):
        self.rounds = self.marked

    def update(self, arm, rows):
        self.clock.seconds["draft"] += self.costs[self.arms.index(arm)]
        self.rounds -= self.saves[arm] * (self.rounds - self.least)
        self.updates.append(arm)


class StillClock(Clock):
    """Its seconds are what a test says."""

    def _charge(self):
        pass


class Nothing(Drafter):
    def propose(self, rows, gammas):
        return Draft(torch.zeros(len(rows), 0, dtype=torch.long), [0] * len(rows))

    def release(self, rows):
        pass


def serve(drafter, world, clock, num_windows, start=0):
    """Windows of eight rows, whose rounds take time."""
    chosen = []
    for number in range(start, start + num_windows):
        rows = [Sequence(8 * number + i, [1], 4) for i in range(8)]
        for row in rows:
            row.emit([1, 1, 1, 1])
            row.accepted_lengths = [0] * max(round(world.rounds / 4), 1)
        clock.seconds["verify"] += world.rounds
        drafter.release(rows)
        chosen.append(drafter.propose(rows, [0] * 8).learned[0])
    return chosen


def adapting_world(saves, policy=None, **settings):
    clock = StillClock()
    world = World(clock, saves)
    policy = policy or Bandit(world.arms, **{"horizon": None, "trial_share": 0.05, **settings})
    return AdaptingDrafter(Nothing(), world, policy, clock, rows=8, max_tokens=8), world, clock


def test_a_good_drafter_is_left_alone_but_for_a_few_trials_which_are_undone():
    drafter, world, clock = adapting_world((-0.01, -0.02))
    chosen = serve(drafter, world, clock, 400)
    assert 0 < len(world.updates) <= 4 * UPDATES
    assert set(chosen[-100:]) == {"none"}
    assert world.rounds == 24.0, "harmful trials are dropped"
    assert sum(map({"head": 1.0, "drafter": 4.0}.get, world.updates)) < 0.05 * sum(clock.seconds.values())


def test_after_a_shift_the_drafter_learns_until_nothing_more_is_gained():
    drafter, world, clock = adapting_world((-0.01, -0.01), horizon=4000)
    serve(drafter, world, clock, 300)
    before = len(world.updates)
    world.rounds, world.saves = 48.0, {"head": 0.0, "drafter": 0.1}
    chosen = serve(drafter, world, clock, 300, 300)
    assert world.rounds < 20
    assert "drafter" in chosen[:60]
    assert set(chosen[-50:]) == {"none"}
    assert len(world.updates) - before < 150


def test_an_update_that_costs_more_than_it_will_ever_save_is_not_made():
    gains = {}
    for horizon in (40, 40_000):
        drafter, world, clock = adapting_world((0.0, 0.02), horizon=horizon)
        serve(drafter, world, clock, 300)
        gains[horizon] = world.updates.count("drafter")
    assert gains[40] <= UPDATES < 100 < gains[40_000]


def test_always_updates_after_every_window():
    drafter, world, clock = adapting_world((0.0, 0.0), Always(World.arms))
    assert serve(drafter, world, clock, 5) == ["drafter"] * 5


def test_later_trials_of_an_arm_count_more():
    arm = _Arm()
    arm.add(0.1, 0.04)
    arm.add(0.4, 0.02)
    assert math.isclose(arm.gain, (0.1 / 0.08 + 0.4 / 0.02) / (1 / 0.08 + 1 / 0.02))
    assert math.isclose(arm.variance, 1 / (1 / 0.08 + 1 / 0.02))
