"""The kit itself: what is right passes, and every planted or published defect is reported under the right promise."""

from __future__ import annotations

import runpy
from collections import Counter
from pathlib import Path

import pytest
from cases import short_only
from conftest import no_library

from specdec.alignment.checked import InvariantError
from specdec.conformance import examine
from specdec.conformance.calls import check_program
from specdec.conformance.cases import CROSSED, Admit, Commit, Forward, Program
from specdec.conformance.explore import explore
from specdec.conformance.programs import long_program
from specdec.conformance.promises import BY_GROUP
from specdec.conformance.suites import alignment_suite, drafter_suite, scheduler_suite
from specdec.core.round import Draft
from specdec.drafters.model import ModelDrafter
from specdec.models.execution.native import NativeExecution
from specdec.models.kv import GROWTH_COLUMNS
from specdec.registry import create

ROOT = Path(__file__).parent.parent
SCALE = 0.25


def broken(group: str, name: str, scale: float = SCALE, execution: str = "eager", **params: object) -> set[str]:
    findings = examine(group, name, params, scale=scale, shrink=False, execution=execution)
    return {finding.promise for finding in findings if not finding.kept}


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["inplace", "eqspec", "masked", "rollback", "expansion"])
def test_correct_strategies_keep_every_promise(name):
    assert broken("alignment", name) == set()


@pytest.mark.slow
@pytest.mark.skipif(no_library() is not None, reason=f"no native library here: {no_library()}")
@pytest.mark.parametrize(
    ("plugin", "settings"),
    [
        ("alignment=inplace", {}),
        *(
            pytest.param(f"alignment={name}", {}, marks=pytest.mark.nightly)
            for name in ("eqspec", "masked", "rollback", "expansion")
        ),
        pytest.param("drafter=model", {}, marks=pytest.mark.nightly),
        pytest.param("drafter=medusa", {"untrained": True}, marks=pytest.mark.nightly),
        pytest.param("scheduler=exspec", {}, marks=pytest.mark.nightly),
    ],
)
def test_every_promise_is_kept_with_native_forwards(plugin, settings, monkeypatch):
    runs, run = Counter(), NativeExecution.run
    monkeypatch.setattr(NativeExecution, "run", lambda self, call: [runs.update(["native"]), run(self, call)][1])
    group, _, name = plugin.partition("=")
    assert broken(group, name, execution="native", **settings) == set()
    assert runs["native"] > 200


@pytest.mark.nightly
@pytest.mark.skipif(no_library() is not None, reason=f"no native library here: {no_library()}")
def test_a_defect_is_found_with_native_forwards_too():
    assert "position" in broken("alignment", "bsp", execution="native", count_padding=True, count_holes=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "switches", "expected"),
    [
        pytest.param("bsp", {"count_padding": True, "count_holes": False}, "position", marks=pytest.mark.nightly),
        pytest.param("bsp", {"count_padding": False, "count_holes": True}, "position", marks=pytest.mark.nightly),
        pytest.param(
            "dsd",
            {"attend_padding": True, "pile_up_padding": False, "absolute_positions": False},
            "visibility",
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            "dsd",
            {"attend_padding": False, "pile_up_padding": True, "absolute_positions": True},
            "position, visibility",  # where many tokens pile up, an earlier one's key is not where it is looked for
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_each_published_defect_breaks_its_own_promise(name, switches, expected):
    found = broken("alignment", name, **switches)
    assert found & {"length", "position", "visibility", "logits", "filler", "calls"} == set(expected.split(", "))


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "switches"),
    [
        ("bsp", {"count_padding": False, "count_holes": False}),
        ("dsd", {"attend_padding": False, "pile_up_padding": True, "absolute_positions": False}),
    ],
)
def test_without_their_defects_they_pass(name, switches):
    assert broken("alignment", name, scale=0.1, **switches) == set()


@pytest.mark.nightly
def test_known_incorrect_verifier_and_scheduler():
    assert {"greedy", "emission"} <= broken("verifier", "dsd", keep_rejected=True, no_bonus=False)
    slower = broken("verifier", "dsd", keep_rejected=False, no_bonus=True)
    assert "acceptance" in slower
    assert "emission" not in slower
    assert broken("scheduler", "lockstep") == {"progress"}
    assert broken("scheduler", "lockstep", stop_with_fastest=False) == set()


@pytest.mark.parametrize(
    ("plugin", "settings"),
    short_only(
        [
            ("verifier=greedy", {}),
            ("verifier=rejection", {}),
            pytest.param("verifier=block", {}, marks=pytest.mark.nightly),
            pytest.param("verifier=naive", {}, marks=pytest.mark.nightly),
            ("verifier=typical", {}),
            pytest.param("scheduler=static", {}, marks=pytest.mark.nightly),
            ("scheduler=exspec", {}),
            ("scheduler=exspec", {"max_wait_rounds": 3}),
            pytest.param("drafter=model", {}, marks=pytest.mark.nightly),  # CI: with native forwards
            pytest.param("drafter=scripted", {}, marks=pytest.mark.nightly),
            pytest.param("drafter=retokenize", {}, marks=pytest.mark.nightly),
            pytest.param("drafter=medusa", {"untrained": True}, marks=pytest.mark.nightly),
            pytest.param("drafter=eagle", {"untrained": True}, marks=pytest.mark.nightly),
            *(
                pytest.param(f"drafter={name}", {"untrained": True}, marks=pytest.mark.nightly)
                for name in ("ppd", "eagle3", "peagle", "specblock", "dflash", "dspark", "mtp", "longspec")
            ),
            pytest.param("drafter=trigram", {}, marks=pytest.mark.nightly),
            ("drafter=prompt_lookup", {"matches": 3}),
            pytest.param("drafter=medusa", {"untrained": True, "nodes": 9}, marks=pytest.mark.nightly),
            pytest.param("drafter=ppd", {"untrained": True, "nodes": 9}, marks=pytest.mark.nightly),
            pytest.param("drafter=specblock", {"untrained": True, "nodes": 9}, marks=pytest.mark.nightly),
            pytest.param("drafter=trigram", {"nodes": 9}, marks=pytest.mark.nightly),
            pytest.param("drafter=suffix", {"nodes": 9}, marks=pytest.mark.nightly),
            pytest.param("drafter=suffix", {}, marks=pytest.mark.nightly),
            pytest.param("drafter=recycling", {"nodes": 9}, marks=pytest.mark.nightly),
            pytest.param("drafter=recycling", {}, marks=pytest.mark.nightly),
        ],
        ("scheduler=exspec", {}),
    ),
)
def test_other_groups_pass(plugin, settings):
    group, _, name = plugin.partition("=")
    assert broken(group, name, **settings) == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("scheduler", "round_robin"),
        pytest.param("alignment", "recompute", marks=pytest.mark.nightly),  # CI tries each of them as a package, too
        pytest.param("drafter", "bigram", marks=pytest.mark.nightly),
    ],
)
def test_the_example_plug_ins_keep_every_promise(group, name, monkeypatch):
    """From their files: here they are not installed, and must not be registered for the other tests."""
    monkeypatch.setattr("specdec.register", lambda *given, **properties: lambda cls: cls)
    scope = runpy.run_path(str(ROOT / "experiments" / f"plugin_{group}" / f"specdec_{name}.py"))
    (plugin,) = (one for one in scope.values() if isinstance(one, type) and one.__module__ == "<run_path>")
    suites = {"scheduler": scheduler_suite, "alignment": alignment_suite, "drafter": drafter_suite}
    findings = explore(suites[group](plugin, 0.1), BY_GROUP[group], shrink=False)
    assert {finding.promise for finding in findings if not finding.kept} == set()
    assert group != "scheduler" or plugin(2, 5).max_wait_rounds == 8


@pytest.mark.nightly
def test_a_drafter_that_listens_to_its_neighbours_is_caught():
    class Nosy(ModelDrafter):
        def propose(self, rows, gammas):
            draft = super().propose(rows, gammas)
            return Draft((draft.tokens_BG + len(rows) - 1) % 61, draft.num_drafted)

    class Verbose(ModelDrafter):
        def propose(self, rows, gammas):
            return super().propose(rows, [gamma + 1 for gamma in gammas])

    for drafter, promise in ((Nosy, "neighbours"), (Verbose, "shape")):
        findings = explore(drafter_suite(drafter, 0.1), BY_GROUP["drafter"], shrink=False)
        assert promise in {finding.promise for finding in findings if not finding.kept}


@pytest.mark.nightly
def test_the_smallest_case_is_small():
    """One forward after one rejected token is all it takes to show that holes are counted."""
    findings = examine("alignment", "bsp", {"count_padding": False}, scale=SCALE)
    smallest = next(finding.smallest for finding in findings if finding.promise == "position")
    assert isinstance(smallest, Program)
    assert len(smallest.steps) <= 6, str(smallest)
    assert check_program(smallest, lambda *given: create("alignment", "bsp", *given, count_padding=False))


def test_a_violation_says_all_that_one_needs():
    """Invariant, round, row, position, expected and found."""
    steps = (Admit(((4, (1, 2)), (5, (3,)))), Forward(((4, (7,)), (5, (8,)))), Commit(((4, 3), (5, 2))))
    (found,) = check_program(Program(steps), lambda *given: create("alignment", "bsp", *given))
    assert found.promise == "position"
    assert "round 1, row 5, position 1" in found.detail
    assert "expected the number of tokens before it, found position id 2" in found.detail
    error = InvariantError("position", 1, 5, 1, 1, 2)
    assert (error.invariant, error.round, error.row, error.position, error.expected, error.found) == (
        *("position", 1, 5, 1),
        *(1, 2),
    )


def test_the_long_program_outgrows_the_cache():
    assert CROSSED == GROWTH_COLUMNS
    fed = sum(
        max(len(tokens) for _, tokens in step.tokens) for step in long_program().steps if isinstance(step, Forward)
    )
    assert fed > GROWTH_COLUMNS
    assert max(max(keep for _, keep in step.kept) for step in long_program().steps if isinstance(step, Commit)) > 150
