"""The kit loses no finding: what is noted before an exception, by an earlier case, or in a malformed answer, stays."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from cases import short_only

from specdec.conformance import decoding
from specdec.conformance.__main__ import main
from specdec.conformance.cases import CROSSED, DecodingCase, abbreviated, ramp
from specdec.conformance.checked_drafter import shape_problem
from specdec.conformance.decoding import Parts, check_run
from specdec.conformance.distributions import EMITTED_CASES, check_emitted
from specdec.conformance.explore import Family, explore
from specdec.conformance.programs import growing_programs
from specdec.conformance.promises import BY_GROUP, SCHEDULER, Broken
from specdec.conformance.suites import alignment_suite, drafter_suite, scheduler_suite, verifier_suite
from specdec.conformance.verdicts import VerdictCase, check_verdict
from specdec.core.round import Draft
from specdec.core.siblings import CHAIN
from specdec.drafters.lookup import PromptLookupDrafter
from specdec.drafters.model import ModelDrafter
from specdec.errors import ConfigError, ContractError
from specdec.models.kv import KVStorage
from specdec.registry import create
from specdec.schedulers.base import Scheduler
from specdec.schedulers.static import StaticScheduler
from specdec.verifiers.greedy import GreedyVerifier
from specdec.verifiers.naive import NaiveVerifier

CASE = DecodingCase(((1, 2), (3,), (4, 5, 6)), (4, 2, 6), 2, (2,), (1, 0, 2))


class Abandoning(StaticScheduler):
    """Returns nothing for the last lone row, so that the round breaks down."""

    def select(self, pool):
        rows = super().select(pool)
        return [] if len(rows) == 1 and not pool.waiting else rows


def found_of(families: list[Family], group: str) -> dict[str, int]:
    findings = explore(families, BY_GROUP[group], shrink=False)
    return {finding.promise: finding.num_broken for finding in findings if not finding.kept}


# --- what is noted before an exception -----------------------------------------------------------------------------


@pytest.mark.slow
def test_what_a_scheduler_breaks_before_the_round_breaks_down_is_reported():
    found = found_of(scheduler_suite(Abandoning, 0.1), "scheduler")
    assert found.keys() == {"choice"}
    assert found["choice"] > 10, "nearly every run has a last lone row"


def test_the_outcome_of_a_case_does_not_change_with_the_next():
    (family, *_) = scheduler_suite(Abandoning, 0.1)
    outcome = family.run(CASE)
    assert [broken.promise for broken in outcome] == ["choice"]
    family.run(DecodingCase(((1,), (1, 2)), (1, 1), 2, (1,), (0,)))
    assert [broken.promise for broken in outcome] == ["choice"]


@pytest.mark.parametrize(
    "change",
    [
        lambda draft: replace(draft, tokens_BG=draft.tokens_BG[:1], num_drafted=draft.num_drafted[:1]),
        lambda draft: replace(draft, num_drafted=[]),
        lambda draft: replace(draft, num_drafted=[draft.tokens_BG.shape[1] + 1] * len(draft.num_drafted)),
        lambda draft: replace(draft, tokens_BG=draft.tokens_BG[0]),
        lambda draft: replace(draft, parents=[[0] * count for count in draft.num_drafted]),
        lambda draft: replace(draft, parents=[[] for _ in draft.num_drafted]),
        lambda draft: replace(draft, parents=[[1, -1][:count] + [0] * (count - 2) for count in draft.num_drafted]),
        lambda draft: replace(draft, tokens_BG=draft.tokens_BG * 0, parents=[[-1] * n for n in draft.num_drafted]),
        lambda draft: replace(draft, num_probes=[]),
        lambda draft: replace(draft, tokens_BG=draft.tokens_BG + 61),
        lambda draft: replace(draft, probs_BGV=torch.ones(*draft.tokens_BG.shape, 60) / 60),
        lambda draft: replace(draft, probs_BGV=torch.ones(*draft.tokens_BG.shape, 61)),
    ],
)
def test_a_malformed_draft_breaks_its_shape_whatever_becomes_of_the_round(change):
    class Malformed(ModelDrafter):
        def propose(self, rows, gammas):
            return change(super().propose(rows, gammas))

    runs = next(family for family in drafter_suite(Malformed) if family.name == "decoding runs")
    case = DecodingCase(((1, 2), (3,), (4, 5, 6)), (6, 6, 6), 3, (3,), ())
    assert {broken.promise for broken in runs.run(case)} == {"shape"}
    well_formed = Draft(torch.zeros(2, 3, dtype=torch.long), [3, 3])
    assert shape_problem(well_formed, [3, 3]) == ""
    assert shape_problem(change(well_formed), [3, 3])


def test_parents_that_depend_on_the_neighbours_are_found():
    """The same tokens under other parents are another draft."""

    class Leaning(PromptLookupDrafter):
        def propose(self, rows, gammas):
            draft = super().propose(rows, gammas)
            counts = [min(count, 2) for count in draft.num_drafted]
            second = 0 if len(rows) == 1 else -1
            return Draft(draft.tokens_BG, counts, [[-1, second][:count] for count in counts])

    make = partial(Leaning, max_ngram=2, min_ngram=1, matches=3)
    runs = next(family for family in drafter_suite(make) if family.name == "decoding runs")
    looping = ((1, 2, 3, 1, 2, 3, 1), (6, 7, 8, 6))
    assert "neighbours" in {broken.promise for broken in runs.run(DecodingCase(looping, (6, 6), 2, (3,), ()))}


def test_what_a_verifier_breaks_before_it_raises_is_reported():
    class Fragile(GreedyVerifier):
        def verify(self, draft, logits_BTV):
            verdict = super().verify(draft, logits_BTV)
            if bool((logits_BTV.argmax(-1) == 3).any()):  # the filler of the second verdict
                raise RuntimeError("unexpected")
            logits_BTV += 1
            return verdict

    case = VerdictCase(((((-1, 1),), (1, 2)), ((), (2,))), False, 0)
    assert [broken.promise for broken in check_verdict(case, Fragile())] == ["purity", "calls"]


def test_what_is_found_on_greedy_rows_does_not_hide_sampled_ones():
    class Wrong(NaiveVerifier):
        def verify(self, draft, logits_BTV):
            raise RuntimeError("greedy rows cannot be decided")

        def verify_sampled(self, draft, probs_BTV, noise):
            noise.draws_BT.mul_(0.5)
            return super().verify_sampled(draft, probs_BTV, noise)

    case = VerdictCase(((((-1, 1),), (1, 2)), ((), (2,))), False, 0)
    assert {broken.promise for broken in check_verdict(case, Wrong())} == {"calls", "purity"}


def test_a_verifier_that_reads_chains_only_must_say_so_and_decide_greedy_trees():
    tree = VerdictCase(((((-1, 1), (-1, 2), (0, 3)), (1, 3, 0, 2)),), False, 0)

    class Silent(NaiveVerifier):
        def verify_sampled(self, draft, probs_BTV, noise):
            if draft.parents:
                raise ContractError("chains only")
            return super().verify_sampled(draft, probs_BTV, noise)

    class Declared(Silent):
        judges = (CHAIN,)

    class Greedy(Declared):
        def verify(self, draft, logits_BTV):
            return self.verify_sampled(draft, logits_BTV, None)

    assert [broken.promise for broken in check_verdict(tree, Silent())] == ["calls"]
    assert check_verdict(tree, Declared()) == []
    assert [broken.promise for broken in check_verdict(tree, Greedy())] == ["calls"]


def test_a_verifier_whose_constructor_fails_is_a_finding():
    def make():
        raise TypeError("no such setting")

    findings = explore(verifier_suite(make, 0.01), BY_GROUP["verifier"], shrink=False)
    assert {finding.promise for finding in findings if not finding.kept} == {"calls"}


@pytest.mark.slow
def test_emitted_tokens_of_a_lossy_verifier_show_it():
    """What typical acceptance emits is not distributed as the target says; it is registered as lossy for that."""
    lossy = create("verifier", "typical", epsilon=0.5, delta=1.0)
    assert any(check_emitted(case, lossy) for case in EMITTED_CASES)
    families = {family.name: family.fixed for family in verifier_suite(lambda: lossy, lossy=True)}
    assert families["emitted tokens"] == ()


# --- what cannot be reported at all --------------------------------------------------------------------------------


def test_a_promise_that_nobody_would_see_is_an_error():
    family = Family("misnamed", lambda case: [Broken("chioce", "rows [1]")], fixed=[1])
    with pytest.raises(KeyError, match="chioce"):
        explore([family], SCHEDULER)


def test_a_plug_in_that_refuses_every_case_is_not_called_kept():
    class Refusing(StaticScheduler):
        def __init__(self, batch, window):
            raise ConfigError(f"scheduler.mine needs a GPU, not batch={batch}")

    with pytest.raises(ConfigError, match="needs a GPU"):
        explore(scheduler_suite(Refusing, 0.1), BY_GROUP["scheduler"])


def test_cases_that_a_plug_in_refuses_do_not_count():
    class Wide(StaticScheduler):
        def __init__(self, batch, window):
            if batch < 3:
                raise ConfigError(f"batch={batch}: it must be at least 3")
            super().__init__(batch, window)

    (family, *_) = scheduler_suite(Wide)
    for case in family.fixed:
        family.run(case)
    assert len(family.outcomes) == sum(case.batch >= 3 for case in family.fixed) > 0
    assert len(family.refused) == sum(case.batch < 3 for case in family.fixed) > 0


@pytest.mark.parametrize("group", ["alignment", "drafter", "scheduler"])
def test_a_constructor_that_raises_is_a_finding(group):
    def make(*arguments):
        raise ValueError("broken at the start")

    suites = {"alignment": alignment_suite, "drafter": drafter_suite, "scheduler": scheduler_suite}
    families = suites[group](make, 0.01)
    assert found_of(families, group) == {"calls": sum(len(family.outcomes) for family in families)}


def test_a_refusal_in_mid_run_is_a_finding():
    class Late(StaticScheduler):
        def select(self, pool):
            if pool.finished:
                raise ConfigError("scheduler.mine=1: no longer")
            return super().select(pool)

    parts = Parts(scheduler=lambda name, *sizes: Late(*sizes))
    assert [broken.promise for broken in check_run(CASE, parts)] == ["calls"]


# --- claims --------------------------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_what_is_not_claimed_is_not_called_kept(capsys):
    assert main(["scheduler=static", "verifier=greedy", "--scale", "0.02"]) == 0
    out = capsys.readouterr().out
    assert out.count("not claimed") == 4
    assert main(["scheduler=exspec", "scheduler.max_wait_rounds=3", "--scale", "0.02"]) == 0
    assert "not claimed" not in capsys.readouterr().out


@pytest.mark.nightly
def test_a_claim_that_is_not_kept_is_broken():
    class FirstRows(Scheduler):
        def __init__(self, batch, window):
            self.batch, self.window = batch, window

        def select(self, pool):
            pool.activate(self.window - len(pool.active))
            return pool.active[: self.batch]

    class Grouping(FirstRows):
        groups_lengths = True

    class Prompt(FirstRows):
        max_wait_rounds = 1

    for scheduler, expected in ((FirstRows, set()), (Grouping, {"grouping"}), (Prompt, {"waiting"})):
        assert found_of(scheduler_suite(scheduler, 0.1), "scheduler").keys() == expected


# --- storage growth ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["growth of the cache", "decoding runs"])
@pytest.mark.parametrize("name", short_only(["eqspec", "inplace", "masked", "rollback", "expansion"], "inplace"))
def test_the_cases_make_storage_grow_that_holds_something(name, family, monkeypatch):
    """In single calls and in whole runs, for the target and for the draft."""
    grown: list[int] = []
    reserve = KVStorage.reserve

    def spy(self, width):
        before, used = self.data_NBHSD.shape, self.width
        reserve(self, width)
        if self.data_NBHSD.shape != before and used:
            grown.append(before[1])

    monkeypatch.setattr(KVStorage, "reserve", spy)
    (cases,) = (f for f in alignment_suite(lambda *given: create("alignment", name, *given)) if f.name == family)
    long = growing_programs()
    if family == "decoding runs":
        long = [case for case in cases.fixed if max(map(len, case.prompts)) > CROSSED // 2]
    for case in long:
        assert cases.run(case) == []
    assert len(grown) >= len(long)


def test_long_prompts_are_named_in_short():
    assert abbreviated((1, 2, 3)) == "[1, 2, 3]"
    assert abbreviated(ramp(5, 126)) == "ramp(5, 126)"
    assert abbreviated((*ramp(5, 126), 0)) == "ramp(5, 126) + [0]"
    assert len(str(DecodingCase((ramp(1, 126),), (4,), 1, (2,), ()))) < 200
    assert decoding.small_pair(0, "float64")[0].context_length > 126 + 24
