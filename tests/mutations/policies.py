"""Bugs in what decides how much is drafted and verified: trees, draft lengths, budgets."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch

from mutations.planting import Patch, planted
from specdec.budgets.top_max_q import TopMaxQBudget
from specdec.draft_lengths.fixed import FixedLength
from specdec.trees.gumbel import GumbelTree
from specdec.trees.paths import PathsTree

TOP, FIXED, GUMBEL, PATHS = "budget=top_max_q", "draft_length=fixed", "tree=gumbel", "tree=paths"
ROUNDS, DRAWN = "rounds of few rows", "drawn drafts"


@planted(TOP, "the last row is left out", "depths", ROUNDS, tokens=2)
def a_row_left_out(patch: Patch):
    class Short(TopMaxQBudget):
        def keep(self, rows, draft):
            return (super().keep(rows, draft) or [])[:-1]

    return Short


@planted(TOP, "a certain second token takes the place of its own row's first", "law", ROUNDS, tokens=3)
def slots_out_of_order(patch: Patch):
    class Unordered(TopMaxQBudget):
        def keep(self, rows, draft):
            slots, _ = self.survival.of(draft)
            ranks_BL = (-slots.top_BL).ravel().argsort().argsort().reshape(slots.top_BL.shape)
            return (ranks_BL < self.tokens).cumprod(1).sum(1).tolist()

    return Unordered


@planted(FIXED, "one token is taken off, whatever is left", "depths", ROUNDS, gamma=0)
def below_nothing(patch: Patch):
    class Negative(FixedLength):
        def choose(self, rows):
            return [gamma - 1 for gamma in super().choose(rows)]

    return Negative


@planted(FIXED, "lengths alternate by a counter that all engines share", "law", ROUNDS, gamma=2)
def a_shared_counter(patch: Patch):
    calls = itertools.count()

    class Alternating(FixedLength):
        def choose(self, rows):
            half = next(calls) // 2 % 2
            return [half * gamma for gamma in super().choose(rows)]

    return Alternating


@planted(GUMBEL, "siblings stand in the order of their tokens", "distribution", DRAWN, branches=[3, 1])
def siblings_by_token(patch: Patch):
    class ByToken(GumbelTree):
        def grow(self, frontier):
            children = super().grow(frontier)
            order_BC = (1000 * children.parents_BC + children.tokens_BC).argsort(dim=1)
            return replace(
                children,
                tokens_BC=children.tokens_BC.gather(1, order_BC),
                parents_BC=children.parents_BC.gather(1, order_BC),
                real_BC=children.real_BC.gather(1, order_BC),
            )

    return ByToken


@planted(PATHS, "a token that was drawn twice is two children", "shape", DRAWN, num_paths=3)
def paths_not_merged(patch: Patch):
    class Repeating(PathsTree):
        def grow(self, frontier):
            children = super().grow(frontier)
            return replace(children, real_BC=torch.ones_like(children.real_BC))

    return Repeating


@planted(GUMBEL, "wider where a row is alone", "neighbours", branches=[3, 1])
def wider_alone(patch: Patch):
    class Leaning(GumbelTree):
        def grow(self, frontier):
            children = super().grow(frontier)
            if len(frontier.rows) > 1:
                children.real_BC[:, 2:3] = False
            return children

    return Leaning


@planted(GUMBEL, "narrower after some rounds", "state", branches=[3, 1])
def narrower_later(patch: Patch):
    class Tiring(GumbelTree):
        calls = 0

        def grow(self, frontier):
            self.calls += 1
            children = super().grow(frontier)
            if self.calls > 6:
                children.real_BC[:, 2:3] = False
            return children

    return Tiring
