"""Verify budgets: what is cut, what the fit of acceptance learns, and runs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from cases import short_only

from specdec.budgets.confidence import Confidence
from specdec.budgets.cut import cut
from specdec.budgets.slots import Slots
from specdec.conformance.cases import DecodingCase
from specdec.conformance.costs import assumed_costs
from specdec.conformance.decoding import Parts, check_run, drafter_context
from specdec.conformance.models import small_pair
from specdec.conformance.suites import budget_suite
from specdec.core.clock import STAGES, Clock
from specdec.core.metrics import calibration_error
from specdec.core.round import Draft, Round
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence
from specdec.drafters.model import ModelDrafter
from specdec.errors import ConfigError
from specdec.registry import create

DRAWN = {"chain": {}, "paths": {"num_paths": 3}, "gumbel": {"branches": [2, 2, 1, 1]}, "beam": {"width": 3}}


def drafted(tree: str, gammas: list[int], temperature: float = 1.2) -> tuple[list[Sequence], Draft]:
    """What a model drafts for a few rows, with certainties."""
    target, draft_model = small_pair(0, "float64")
    align = partial(create, "alignment", "eqspec")
    context = drafter_context(target, draft_model, Clock(), align, [[]] * len(gammas))
    drafter = ModelDrafter(replace(context, tree=create("tree", tree, **DRAWN.get(tree, {}))))
    drafter.reports_certainty = True
    rows = [Sequence(b, [3, 1, 4 + b], 20, sampling=SamplingParams(temperature, seed=b)) for b in range(len(gammas))]
    drafter.admit(rows)
    return rows, drafter.propose(rows, gammas)


def contents(draft: Draft) -> tuple[list[object], list[float]]:
    """All that a verifier reads of each row, values at columns without children left out: structure, and numbers."""
    found, numbers = [], []
    for b, count in enumerate(draft.num_drafted):
        parents = draft.parents[b] if draft.parents else list(range(-1, count - 1))
        found.append((draft.ids[b][:count], parents, draft.draws[b] if draft.draws else None))
        for column in sorted({parent + 1 for parent in parents}):
            numbers += [*draft.probs_BGV[b, column].tolist(), *draft.certainty_BG2[b, column].tolist()]
    return found, numbers


@pytest.mark.parametrize("tree", DRAWN)
def test_a_cut_draft_is_the_draft_of_that_depth(tree):
    """Random numbers are keyed by level, so a shallower draft begins like a deeper one."""
    _, deep = drafted(tree, [4, 4, 4, 4])
    _, shallow = drafted(tree, [2, 4, 0, 3])
    found = cut(deep, [2, 4, 0, 3])
    (structure, numbers), (expected, expected_numbers) = contents(found), contents(shallow)
    assert structure == expected
    assert numbers == pytest.approx(expected_numbers, abs=1e-6)
    assert found.cut_from == [4, 4, 4, 4]
    assert found.tokens_BG.shape == shallow.tokens_BG.shape


def test_nodes_in_any_order_are_renumbered():
    """Guesses that are merged path by path are not in the order of their depth."""
    parents = [[-1, 0, 1, -1, 3], [-1, -1, 1, 2, 3]]
    tokens = torch.arange(1, 11).view(2, 5)
    columns = torch.arange(10.0).view(2, 5, 1)
    found = cut(Draft(tokens, [5, 5], parents, columns, [[0, 3, 0, 1, 4], [0, 1, 2, 3, 4]]), [1, 3])
    assert found.parents == [[-1, -1], [-1, -1, 1, 2]]
    assert [row[:count] for row, count in zip(found.ids, found.num_drafted, strict=True)] == [[1, 4], [6, 7, 8, 9]]
    assert found.draws == [[0, 1, 0], [0, 1, 2, 3]]
    assert found.probs_BGV[:, :, 0].tolist() == [[0.0, 1.0, 4.0, 2.0], [5.0, 6.0, 7.0, 8.0]]


@pytest.mark.parametrize("tree", ["chain", "paths", "confidence"])
def test_certainties_are_those_of_the_drafts_own_distribution(tree):
    """At temperature 1 they follow from the probabilities; a tree that draws nothing reports them too."""
    _, draft = drafted(tree, [3, 3], temperature=1.0)
    if draft.probs_BGV is None:
        slots = Slots.of(draft)
        assert ((slots.top_BL > 0) & (slots.entropy_BL > 0)).all()
        return
    for b, row in enumerate(draft.parents or [list(range(-1, 2))] * 2):
        for column in {parent + 1 for parent in row}:
            law = draft.probs_BGV[b, column]
            expected = [float(law.max()), float(torch.special.entr(law).sum())]
            assert draft.certainty_BG2[b, column].tolist() == pytest.approx(expected, rel=1e-5)


def test_slots_count_draws_and_not_what_they_merged_to():
    draft = Draft(torch.tensor([[1, 2, 2]]), [3], [[-1, 0, -1]], None, [[0, 2, 1, 1]])
    assert Slots.of(draft).nodes_BL.tolist() == [[2, 2]]
    assert Slots.of(replace(draft, draws=None)).nodes_BL.tolist() == [[2, 1]]


# --- acceptance ----------------------------------------------------------------------------------------------------


def test_the_fit_learns_what_certainty_is_worth():
    """Acceptance that is less certain than the draft: predictions become calibrated, and the draft's belief is not."""
    rng, errors = np.random.default_rng(0), []
    for learns in (True, False):
        confidence, bins = Confidence(), np.zeros((10, 3))
        for _ in range(150):
            top_BL, entropy_BL = rng.uniform(0.3, 0.99, (8, 3)), rng.uniform(0, 3, (8, 3))
            slots = Slots(np.ones((8, 3), int), top_BL, entropy_BL)
            logit = 0.5 * np.log(top_BL / (1 - top_BL)) - 0.5 * entropy_BL + np.array([0.8, 0.2, -0.4])
            right_BL = rng.uniform(size=logit.shape) < 1 / (1 + np.exp(-logit))
            accepted = np.cumprod(right_BL, axis=1).sum(1).tolist()
            bins += confidence.observe(slots, confidence.chances(slots), [3] * 8, accepted)
            confidence = confidence if learns else Confidence()
        errors.append(calibration_error(bins.tolist()))
    assert errors[0] < 0.03 < 0.08 < errors[1]
    assert calibration_error([[10, 9.0, 5.0], [10, 2.0, 2.0]]) == pytest.approx(0.2)


def test_goodput_is_not_misled_by_what_a_budget_keeps():
    """The kept first tokens are accepted 9 times out of 10, the cut second ones would be half of the time."""
    rates = {}
    for cut_chances in (None, [0.5]):
        policy, row = create("draft_length", "goodput", profile=False), Sequence(0, [1], 10_000)
        for turn in range(200):
            policy.choose([row])
            accepted = int(turn % 10 > 0)
            emitted = row.emit([1] * (accepted + 1))
            seconds = dict.fromkeys(STAGES, 0.01)
            policy.observe(
                Round([row], [1], [accepted], [emitted], True, seconds, proposed=[2], cut_chances=cut_chances)
            )
        rates[cut_chances is None] = policy.acceptance.rate(0)
    assert rates[True] == pytest.approx(0.9, abs=0.03)
    assert rates[False] == pytest.approx((0.9 + 0.9 * 0.5) / 1.9, abs=0.03)


# --- runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["early_stop", "top_survival", "top_max_q"])
def test_runs_with_a_budget_keep_every_promise(name):
    """Greedy and sampled runs under every scheduler, with model drafts and scripted ones."""
    families = budget_suite(partial(create, "budget", name), 0.1)
    for family in families[1:]:
        for case in family.fixed[::6]:
            assert not family.run(case), case


def test_a_budget_cuts_in_runs():
    """Otherwise the runs above would prove nothing."""
    depths = []

    class Watched(type(create("budget", "early_stop"))):
        def keep(self, rows, draft):
            found = super().keep(rows, draft)
            depths.extend(zip(found, Slots.of(draft).depths_B.tolist(), strict=True))
            return found

    case = DecodingCase(((1, 2), (3,), (4, 5, 6)), (12, 9, 12), 3, (4,), (), scheduler="continuous", temperature=1.0)
    assert not check_run(case, Parts(budget=Watched))
    assert any(kept < before for kept, before in depths)
    assert any(kept for kept, _ in depths)


@pytest.mark.parametrize(
    ("settings", "message"),
    short_only(
        [
            (["budget=own_q", "temperature=1", "verifier=rejection"], "allow_incorrect=true"),
            (["budget=early_stop", "temperature=1", "verifier=gbv", "tree=paths"], "averages over the paths that lost"),
            (["budget=top_survival", "budget.tokens=-1"], "budget.tokens=-1"),
            (["budget=early_stop", "drafter=ppd", "drafter.untrained=true"], "its prompt tokens hang below"),
            (["budget=early_stop", "runner.tensor_parallel=true", "runner.devices=2"], "set budget.tokens"),
        ],
        ["budget=own_q", "temperature=1", "verifier=rejection"],
    ),
)
def test_what_cannot_be_right_is_refused(settings, message, run):
    code, _, error = run(*settings)
    assert code == 1
    assert message in error


def test_costs_need_a_profile():
    rows, draft = drafted("chain", [3, 3])
    with pytest.raises(ConfigError, match="call prepare"):
        create("budget", "early_stop").keep(rows, draft)
    budget = create("budget", "early_stop")
    with assumed_costs() as profiler:
        budget.prepare(profiler, 2)
    assert len(budget.keep(rows, draft)) == 2
