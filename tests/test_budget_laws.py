"""The promise of verify budgets, by enumeration: causal policies leave every row's law, biased ones are named."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from cases import short_only
from enumeration import Laws
from tree_laws import drafts_of, independent, judge, renumbered

from specdec.budgets.admission import Queue, first_fall
from specdec.budgets.costs import RoundSeconds, lower_hull
from specdec.budgets.ranked import RankedBudget
from specdec.budgets.slots import Slots
from specdec.conformance import examine
from specdec.conformance.neighbours import BLOCK, LawCase, check_budget, check_draft_length, law_cases
from specdec.conformance.row_laws import CHAIN, PATHS
from specdec.draft_lengths.profile import Trial
from specdec.registry import create

CAUSAL = [("early_stop", {}), ("early_stop", {"convex": False}), ("top_survival", {"tokens": 2}), ("top_survival", {})]
CAUSAL += [("top_max_q", {"tokens": 2}), ("top_max_q", {"tokens": 1})]


def broken(name: str, cases: list[LawCase], **params: object) -> dict[LawCase, str]:
    outcomes = {case: check_budget(case, partial(create, "budget", name, **params)) for case in cases}
    return {case: outcome[0].promise for case, outcome in outcomes.items() if outcome}


@pytest.mark.parametrize(
    ("name", "params"), short_only(CAUSAL, ("top_max_q", {"tokens": 1}), ci=["early_stop"]), ids=str
)
def test_causal_policies_leave_every_rows_law(name, params):
    assert not broken(name, law_cases(0.5), **params)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "params"), [("own_q", {"tokens": 2}), ("global_optimum", {})], ids=str)
def test_biased_policies_are_named(name, params):
    found = broken(name, law_cases(1.0), **params)
    assert set(found.values()) == {"law"}
    assert {case.rule for case in found if case.kind == CHAIN} == {"rejection", BLOCK}
    assert not any(case.chosen for case in found), "chosen drafts may be looked at"


@pytest.mark.slow
def test_the_kit_names_the_promise_and_its_smallest_case():
    findings = {finding.promise: finding for finding in examine("budget", "global_optimum", scale=0.4)}
    assert [promise for promise, finding in findings.items() if not finding.kept] == ["law"]
    assert findings["law"].smallest.num_rows == 1
    assert "total variation" in findings["law"].detail


class Merged(RankedBudget):
    """Wrong: a level costs as many tokens as its draws have merged to, which they decide themselves."""

    def keep(self, rows, draft):
        return super().keep(rows, replace(draft, draws=None))

    def scores(self, slots, survival_BL, draft):
        return survival_BL


class Unordered(RankedBudget):
    """Wrong: a certain second token takes the place of its own row's first."""

    def keep(self, rows, draft):
        slots, _ = self.survival.of(draft)
        ranks_BL = (-slots.top_BL).ravel().argsort().argsort().reshape(slots.top_BL.shape)
        return (ranks_BL < self.tokens).cumprod(1).sum(1).tolist()

    def scores(self, slots, survival_BL, draft):
        return slots.top_BL


def test_planted_bugs_are_found():
    for planted, kind in ((Merged, PATHS), (Unordered, CHAIN)):
        outcomes = [check_budget(LawCase(seed, kind=kind), partial(planted, tokens=3)) for seed in range(4)]
        assert {broken.promise for outcome in outcomes for broken in outcome} == {"law"}, planted


def test_draft_lengths_leave_every_rows_law():
    for name, params in (("goodput", {}), ("fixed", {"gamma": 1}), ("batch_table", {})):
        for case in law_cases(0.2):
            assert not check_draft_length(case, partial(create, "draft_length", name, **params))


def test_dsparks_counterexample():
    """SPS(1, 2, 3) = 1, 0.5, 0.45; p = (0.7, 0.3), q = (0.5, 0.5); the second slot is certain after token 0 only."""
    trials = {1: {g: Trial(0.0, s, 1, [], [], 0.0) for g, s in enumerate((1.0, 2.0, 1 / 0.45))}}
    emitted = {"early": 0.0, "best": 0.0}
    slots = Slots(np.ones((1, 2), int), None, None)
    for first, second_chance in ((0, 1.0), (1, 0.0)):
        survival_BL = 0.8 * np.array([[1.0, second_chance]])
        rates = Queue.of(slots, survival_BL).rates(slots, survival_BL, RoundSeconds(trials), ragged=True)
        for name, count in (("early", first_fall(rates)), ("best", int(rates.argmax()))):
            accept = min(1.0, (0.7, 0.3)[first] / 0.5)
            emitted[name] += 0.5 * (0.7 if count == 0 else accept * (first == 0) + (1 - accept))
    assert emitted["early"] == pytest.approx(0.70)
    assert emitted["best"] == pytest.approx(0.85)


def test_with_convex_costs_the_first_fall_is_the_only_one():
    rng = np.random.default_rng(0)
    fell = 0
    for _ in range(200):
        survival_BL = rng.uniform(0.1, 1, (3, 4)).cumprod(1)
        seconds = np.cumsum([1.0, *np.sort(rng.uniform(0, 1, 4))])
        trials = {3: {g: Trial(0.0, s, 1, [], [], 0.0) for g, s in enumerate(seconds)}}
        slots = Slots(np.ones((3, 4), int), None, None)
        rates = Queue.of(slots, survival_BL).rates(slots, survival_BL, RoundSeconds(trials), ragged=True)
        assert first_fall(rates) == int(rates.argmax())
        fell += first_fall(rates) < 12
    assert fell > 100
    assert lower_hull(np.array([0.0, 1, 2, 4]), np.array([0.0, 3, 2, 8]))[0].tolist() == [0, 2, 4]


@pytest.mark.parametrize("name", ["specinfer", "spectr", "traversal", "naive_tree", "recursive", "gbv"])
def test_a_level_may_be_cut_by_what_is_drawn_above_it(name):
    """Not under gbv, whose rule averages over the paths that lost: runs with it and a budget are refused."""
    far = []
    for seed in range(3):
        laws = Laws.random(seed, 2, 2, 1.0)
        drafts = independent(laws, 0, 2, 2)
        far.append(judge(create("verifier", name), laws, without_second_level(drafts)).distance)
    assert (max(far) > 0.01) if name == "gbv" else (max(far) < 1e-12)


def without_second_level(drafts):
    """Cut where both paths begin alike."""
    trees, draws = [], []
    for row, count in enumerate(drafts.draft.num_drafted):
        parents = drafts.draft.parents[row]
        tokens = drafts.draft.ids[row]
        nodes = []
        for node in range(count):
            above = nodes[parents[node]][1] if parents[node] >= 0 else ()
            nodes.append((parents[node], (*above, tokens[node])))
        alike = sum(len(text) == 1 for _, text in nodes) == 1
        dropped = [node for node, (_, text) in enumerate(nodes) if alike and len(text) == 2]
        kept = [node for node in range(count) if node not in dropped]
        trees.append(renumbered(nodes, dropped))
        draws.append([kept.index(node) for node in drafts.draft.draws[row] if node in kept])
    return drafts_of(drafts.vocab, trees, draws, drafts.weights_R)
