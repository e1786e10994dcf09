"""Goodput chooses the width of trees as it chooses their depth: by measured acceptance and measured costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from specdec.core.round import Round
from specdec.core.sequence import Sequence
from specdec.draft_lengths.acceptance import Acceptance
from specdec.draft_lengths.goodput import GoodputLength
from specdec.draft_lengths.profile import Profiler, Trial

FORK, LATER = 0.9, 0.5  # of three paths: the acceptance at the first place, where they fork, and after it
CHAIN = 0.5


def profiler(folder: Path, width: int, node_s: float, rates: list[float]) -> Profiler:
    """A machine on which each node of a draft costs ``node_s`` plain rounds."""

    def run(size: int, gammas: list[int]) -> dict[int, Trial]:
        return {gamma: trial(gamma) for gamma in gammas}

    def trial(gamma: int) -> Trial:
        tried, left = [], 1000
        for rate in rates[:gamma]:
            tried.append(left)
            left = round(left * rate)
        accepted = [round(count * rate) for count, rate in zip(tried, rates, strict=False)]
        return Trial(node_s * gamma * width, 1.0, 1000, tried, accepted, 0.0)

    return Profiler(run, folder, lambda: {"width": width})


def policy(folder: Path, node_s: float) -> GoodputLength:
    """Trees of three paths, or a chain."""
    chain = profiler(folder, 1, node_s, [CHAIN] * 8)
    made = GoodputLength(max_gamma=4)
    made.prepare(replace(profiler(folder, 3, node_s, [FORK] + [LATER] * 7), narrower={1: chain}), 4)
    return made


def rows(num: int = 4) -> list[Sequence]:
    # Far apart, so that they do not wait for the larger gain of rows that end together.
    return [Sequence(i, [0], 100 + 20 * i) for i in range(num)]


@pytest.mark.parametrize(("node_s", "width", "gamma"), [(0.01, None, 4), (0.3, 1, 1), (5.0, None, 0)])
def test_the_width_and_depth_of_the_most_tokens_per_second(tmp_path, node_s, width, gamma):
    """Cheap nodes: wide and deep. Dear ones: a short chain. Too dear: no draft at all."""
    made = policy(tmp_path, node_s)
    made.drafting = True  # the draft has read the prompts
    chosen = made.choose(rows())
    assert max(chosen) == gamma
    if gamma:
        assert made.width == width


def test_a_width_is_left_when_its_drafts_fail(tmp_path):
    made, batch = policy(tmp_path, 0.05), rows()
    made.drafting = True
    widths = []
    for _ in range(60):
        gammas = made.choose(batch)
        widths.append(made.width)
        accepted = [min(1, gamma) if made.width == 1 else 0 for gamma in gammas]
        seconds = {"draft": 0.05 * max(gammas) * (made.width or 3), "verify": 1.0}
        made.observe(Round(batch, gammas, accepted, [[0]] * len(batch), True, seconds))
    assert widths[0] is None
    assert widths[-1] == 1


def test_places_of_a_tree_are_told_apart_and_those_of_a_chain_are_not():
    tree, chain = Acceptance(), Acceptance()
    tree.set_prior(200, 140)
    tree.set_places([100, 90, 10], [90, 45, 5])
    assert chain.relative(0) == chain.relative(5) == 1.0
    assert tree.relative(0) > 1.1 > 0.9 > tree.relative(1)
    assert tree.relative(7) == 1.0
    for _ in range(500):
        tree.observe(0, 3, 1)
    assert tree.relative(0) > 1.5
    assert tree.relative(1) < 0.2
