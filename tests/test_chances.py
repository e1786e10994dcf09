"""Predictions of acceptance that a drafter makes itself: budgets use them, and they must not know their own token."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.budgets.cut import cut
from specdec.budgets.slots import Slots
from specdec.budgets.survival import Survival
from specdec.conformance.distributions import DRAWN_CASES, check_drawn
from specdec.conformance.neighbours import check_budget, law_cases
from specdec.conformance.row_laws import draft_of
from specdec.core.metrics import calibration_error
from specdec.core.round import Draft, Round
from specdec.core.sequence import Sequence
from specdec.heads.dspark import DSparkDrafter
from specdec.registry import create


def knowing(rows, kind, **options) -> Draft:
    """Wrong: predictions that know the token that was drawn."""
    draft = draft_of(rows, kind, **options)
    for b, (laws, one) in enumerate(rows):
        for column, (before, text) in enumerate(zip([(), *one.nodes], one.nodes, strict=False)):
            draft.chances_BG[b, column] = min(1.0, laws.p[before][text[-1]] / laws.q[before][text[-1]])
    return draft


@pytest.mark.parametrize("name", ["early_stop", "top_survival"])
def test_budgets_that_believe_them_leave_every_rows_law(name, monkeypatch):
    cases = [case for case in law_cases(0.7) if case.told]
    make = partial(create, "budget", name)
    assert not [broken for case in cases for broken in check_budget(case, make)]
    monkeypatch.setattr("specdec.conformance.neighbours.draft_of", knowing)
    assert {broken.promise for case in cases for broken in check_budget(case, make)} == {"law"}


def test_they_take_the_place_of_the_fit():
    """For ten rounds of two rows; without a budget they are compared with what came true."""
    rows = [Sequence(b, [1], 50) for b in range(2)]
    draft = Draft(torch.ones(2, 2, dtype=torch.long), [2, 1], chances_BG=torch.tensor([[0.95, 0.4], [0.25, 0.0]]))
    survival, plain = Survival(), create("budget", "none")
    for _ in range(10):
        _, survival_BL = survival.of(draft)
        assert survival_BL[:, 0].tolist() == pytest.approx([0.95, 0.25])
        assert survival_BL[0, 1] == pytest.approx(0.95 * 0.4)
        assert plain.keep(rows, draft) is None
        outcomes = [Round(rows, [2, 1], [1, 0], [[1, 1], [1]], True) for _ in range(2)]
        survival.observe(outcomes[0])
        plain.observe(outcomes[1])
        assert outcomes[0].calibration == outcomes[1].calibration
        assert sum(count for count, _, _ in outcomes[1].calibration) == 3
        assert calibration_error(outcomes[1].calibration) == pytest.approx((0.05 + 0.4 + 0.25) / 3)
    assert Slots.of(cut(draft, [1, 1])).told_BL[:, 0].tolist() == pytest.approx([0.95, 0.25])


def test_dsparks_do_not_know_the_token_that_they_are_about(monkeypatch):
    """A head that reads one token too far is found by the kit."""
    make = partial(create, "drafter", "dspark", untrained=True)
    assert not check_drawn(DRAWN_CASES[0], make)
    honest = DSparkDrafter._confidences
    monkeypatch.setattr(
        DSparkDrafter, "_confidences", lambda self, states, before: honest(self, states, [*before[1:], before[-1]])
    )
    assert {broken.promise for broken in check_drawn(DRAWN_CASES[0], make)} == {"chances"}
