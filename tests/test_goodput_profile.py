"""What goodput knows before a run: a few rounds of the pair, made once and kept on disk."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean

import pytest
from cases import nightly_but, short_only
from hydra import compose, initialize_config_module
from worlds import READ_S, Always, World, compute_bound, memory_bound

from specdec.config.resolve import resolve
from specdec.core.prompts import Prompt
from specdec.core.sequence import Sequence
from specdec.draft_lengths.__main__ import main as show_profiles
from specdec.draft_lengths.acceptance import Acceptance
from specdec.draft_lengths.base import DraftLength
from specdec.draft_lengths.costs import RoundCosts
from specdec.draft_lengths.goodput import GoodputLength
from specdec.draft_lengths.probes import PAUSE
from specdec.draft_lengths.profile import Profiler, Trial, read_trials
from specdec.engine.loop import RoundLoop
from specdec.models.pair import load_pair
from specdec.run import trial_rounds
from specdec.run.decode import decode
from specdec.run.trial_rounds import NUM_TOKENS, NUM_TURNS


def profiled(world: Callable[[], World], batch: int, folder: Path) -> GoodputLength:
    """A policy that has seen short runs of a world."""

    def run(size: int, gammas: list[int]) -> dict[int, Trial]:
        return {gamma: trial(gamma, world(), size) for gamma in gammas}

    def trial(gamma: int, short: World, size: int) -> Trial:
        drafts = [next((i for i in range(gamma) if short.random.random() > short.rate(0)), gamma) for _ in range(400)]
        tried = [sum(place < min(accepted + 1, gamma) for accepted in drafts) for place in range(gamma)]
        accepted = [sum(place < accepted for accepted in drafts) for place in range(gamma)]
        return Trial(gamma * short.step_s(size), short.plain_s(size), 400, tried, accepted, READ_S)

    policy = GoodputLength()
    policy.prepare(Profiler(run, folder, lambda: {"world": "w"}), batch)
    return policy


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_with_a_profile_nothing_is_spent_on_what_is_known_not_to_pay(batch, tmp_path):
    for world, least in ((compute_bound, 1.0), (partial(memory_bound, 0.02), 0.985)):
        make = partial(world, 0.4) if world is compute_bound else world
        short, plain = make(), make()
        policy = profiled(make, batch, tmp_path / str(least))
        assert not policy.drafting
        assert short.run(policy, batch, 60) >= least * plain.run(Always(0), batch, 60)
        assert sum(map(bool, short.gammas[:PAUSE])) == 0


@pytest.mark.parametrize("batch", short_only([1, 8, 32], 1, 8))
def test_with_a_profile_drafting_begins_at_once_where_it_pays(batch, tmp_path):
    def speed(policy: DraftLength, seed: int) -> float:
        world = memory_bound(0.9)
        world.random = random.Random(seed)
        rate = world.run(policy, batch, 40)
        is_plain_start = isinstance(policy, GoodputLength) and not policy.profile
        assert is_plain_start or min(world.gammas[:3]) > 2
        return rate

    known = mean(speed(profiled(partial(memory_bound, 0.9), batch, tmp_path), seed) for seed in range(8))
    # The start without a profile is short: two plain rounds and a probe of two, of some fifty.
    assert known > 1.02 * mean(speed(GoodputLength(profile=False), seed) for seed in range(8))
    assert known > 0.93 * max(mean(speed(Always(gamma), seed) for seed in range(8)) for gamma in (4, 6, 8))


@pytest.mark.slow
def test_a_profile_that_is_wrong_is_corrected_by_what_the_run_sees(tmp_path):
    world = memory_bound(0.9)
    world.run(profiled(partial(memory_bound, 0.02), 4, tmp_path / "low"), 4, 2500)
    assert sum(world.gammas[-100:]) / 100 > 3, "a draft that is better than it was comes to be used"
    world = compute_bound(0.2)
    plain = compute_bound(0.2).run(Always(0), 4, 2000)
    assert world.run(profiled(partial(memory_bound, 0.9), 4, tmp_path / "high"), 4, 2000) > 0.97 * plain
    assert sum(map(bool, world.gammas[100:])) <= 9, "beyond a probe or two"


@pytest.mark.parametrize("batch", [2, 8])
def test_a_machine_that_is_slower_or_faster_now_changes_nothing(batch, tmp_path):
    def gammas(factor: float) -> list[int]:
        """In a world where all takes so many times the time, for a policy that knows the usual one."""
        policy = profiled(partial(memory_bound, 0.5), batch, tmp_path)
        slow = World(lambda _: 0.5, lambda _: 0.01 * factor, lambda _: 0.001 * factor, read_s=READ_S * factor)
        slow.run(policy, batch, 120)
        return slow.gammas

    assert sum(map(bool, gammas(1.0))) > 60
    assert gammas(0.25) == gammas(1.0) == gammas(4.0)


def test_a_plain_round_that_was_slow_in_the_profile_is_measured_again(tmp_path):
    """With it drafting looks as if it paid, and drafting rounds alone would never show that it does not."""
    policy = profiled(partial(compute_bound, 0.4), 8, tmp_path)
    for size in (1, 2, 4, 8):
        policy.costs.set_prior(size, 0, 10 * 0.01 * size)
    world, plain = compute_bound(0.4), compute_bound(0.4)
    assert world.run(policy, 8, 200) > 0.93 * plain.run(Always(0), 8, 200)
    assert world.gammas[0] > 0
    assert sum(map(bool, world.gammas[12:100])) == 0


def test_outputs_that_end_before_their_budget_do_not_repay_the_reading_of_their_prompts(tmp_path):
    def world() -> World:
        slow_to_read = memory_bound(0.6)
        slow_to_read.length, slow_to_read.stop_at = 512, 12
        return slow_to_read

    world_, plain = world(), world()
    assert world_.run(profiled(world, 16, tmp_path), 16, 600) > 0.97 * plain.run(Always(0), 16, 600)
    assert sum(map(bool, world_.gammas[100:])) < 30


def test_rows_in_step_are_not_brought_out_of_it_for_a_small_gain(tmp_path):
    """Where they would end one by one anyway, the same gain is taken."""

    def drafted(budgets: list[int]) -> int:
        policy = profiled(partial(memory_bound, 0.25), 8, tmp_path)  # a draft of one token gains 14%
        return sum(policy.choose([Sequence(i, [1] * 5, budget) for i, budget in enumerate(budgets)]))

    assert drafted([64] * 8) == 0
    assert drafted([60, 62] * 4) == 0, "as a probe leaves them"
    assert drafted([48, 64, 80, 96] * 2) > 0


def test_of_a_profile_only_the_proportions_count():
    """The machine may be slower now than it was."""
    costs = RoundCosts()
    for rows, steps, seconds in ((2, 0, 1.0), (2, 4, 1.5), (4, 0, 1.2), (4, 4, 2.4)):
        costs.set_prior(rows, steps, seconds)
    assert costs.estimate(4, 4) == 2.4
    costs.observe(4, 0, 3.6)
    assert costs.estimate(4, 4) == pytest.approx(7.2)
    assert costs.estimate(2, 0) == pytest.approx(3.0)
    before = costs.estimate(4, 4)
    costs.observe(4, 4, 40.0)
    assert costs.estimate(4, 4) / costs.scale == pytest.approx(before / 3.0), "one slow round says nothing"
    for _ in range(8):
        costs.observe(4, 4, 4.0)
    assert costs.estimate(4, 4) == 4.0, "what was measured here has the last word"
    off_grid = RoundCosts()
    for steps, seconds in ((0, 1.0), (2, 1.2), (4, 1.6)):
        off_grid.set_prior(2, steps, seconds)
    assert off_grid.estimate(2, 3) == pytest.approx(1.4)
    off_grid.observe(2, 3, 2.8)
    assert off_grid.estimate(2, 0) == pytest.approx(2.0), "a length between those of the profile tells the scale too"


def test_the_scale_is_the_median_over_shapes():
    costs = RoundCosts()
    for rows in (1, 2, 4):
        costs.set_prior(rows, 0, 1.0)
        costs.observe(rows, 0, 9.0 if rows == 2 else 1.5)
    assert costs.scale == 1.5, "one shape that was disturbed says nothing about the machine"


def test_what_was_seen_before_a_run_is_where_acceptance_begins():
    acceptance = Acceptance()
    acceptance.set_prior(num_tried=1600, num_accepted=780)
    assert acceptance.rate(0) == pytest.approx(780 / 1600, abs=0.06)
    for _ in range(200):
        acceptance.observe(0, 3, 3)
    assert acceptance.rate(1) > 0.8


def composed(folder: Path, *overrides: str):
    words = [
        *("pair=synthetic", "pair.hidden_size=64", "pair.num_layers=3", "pair.synthetic.residual_scale=0.02"),
        *("scheduler=continuous", "draft_length=goodput", f"results_dir={folder}", "max_new_tokens=12", "warmup=false"),
    ]
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        return resolve(compose(config_name="config", overrides=[*words, *overrides]))


@pytest.mark.slow
def test_a_real_pair_is_measured_once_with_whole_drafts_only(tmp_path, capsys):
    cfg = composed(tmp_path, "batch=3")
    pair = load_pair(cfg)
    prompts = [Prompt(i, i, "c", [(7 * i + j) % 50 for j in range(5 + 3 * i)]) for i in range(4)]
    rows = decode(cfg, pair, prompts).rows
    assert capsys.readouterr().out.count("measuring draft lengths at batch size 1, 2, 3, once") == 1
    (path,) = (tmp_path / "draft_tables").iterdir()
    for size, by_gamma in read_trials(path).items():
        assert sorted(by_gamma) == [0, 1, 2, 4, 8]
        for gamma, trial in by_gamma.items():
            assert trial.num_row_rounds == size * NUM_TURNS
            assert len(trial.tried) == len(trial.accepted) == gamma, "no draft was cut"
            assert trial.tried[:1] == [size * NUM_TURNS][:gamma]
            assert trial.tried[1:] == trial.accepted[:-1], "a place is tried if all before it were accepted"
            assert trial.verify_s > 0
            assert trial.read_s >= 0
        num_tokens = sum(trial.num_row_rounds + trial.num_accepted for trial in by_gamma.values())
        assert num_tokens > size * NUM_TOKENS, "so that batches were begun again"

    plain = composed(tmp_path, "batch=3", "drafter=none", "draft_length=fixed")
    assert [row.output_ids for row in decode(plain, pair, prompts).rows] == [row.output_ids for row in rows]
    decode(cfg, pair, prompts)
    decode(composed(tmp_path, "batch=3", "draft_length.profile=false"), pair, prompts)
    assert "measuring" not in capsys.readouterr().out


def test_a_round_is_timed_after_one_of_the_same_length(tmp_path, monkeypatch):
    """The round before leaves its weights in the processor's caches, and after a plain one the draft catches up."""
    lengths, timed = [], []
    step, add = RoundLoop.step, trial_rounds._Rounds.add

    def recorded_step(engine, pool):
        lengths.append(engine.draft_length.gamma)
        return step(engine, pool)

    def recorded_add(rounds, outcome):
        timed.append(lengths[-2:])
        add(rounds, outcome)

    monkeypatch.setattr(RoundLoop, "step", recorded_step)
    monkeypatch.setattr(trial_rounds._Rounds, "add", recorded_add)
    cfg = composed(tmp_path, "batch=1", "draft_length.max_gamma=2")
    prompts = [Prompt(0, 0, "c", list(range(9)))]
    trial_rows = trial_rounds.TrialRows(prompts, 512, frozenset(), None, None)
    trial_rounds.profiler(cfg, load_pair(cfg), trial_rows).run(1, [0, 1, 2])
    assert timed == NUM_TURNS * [[2, 2], [1, 1], [0, 0]]


@pytest.mark.nightly
def test_what_is_drafted_behind_a_stop_is_not_counted(tmp_path):
    cfg = composed(tmp_path, "batch=2", "draft_length.max_gamma=2")
    pair = load_pair(cfg)
    prompts = [Prompt(i, i, "c", [(7 * i + j) % 50 for j in range(9)]) for i in range(2)]
    firsts = [row.output_ids[0] for row in decode(cfg, pair, prompts).rows]
    stopping = composed(tmp_path / "stops", "batch=2", "draft_length.max_gamma=2", f"stop_tokens={firsts}")
    assert [len(row.output_ids) for row in decode(stopping, pair, prompts).rows] == [1, 1]
    (path,) = (tmp_path / "stops" / "draft_tables").iterdir()
    trials = read_trials(path)
    assert [trial.num_row_rounds for by_gamma in trials.values() for trial in by_gamma.values()] == [0] * 6
    assert min(trial.verify_s for by_gamma in trials.values() for trial in by_gamma.values()) > 0


def test_a_few_rows_do_not_stand_for_many(tmp_path):
    """Plain rounds of one row were measured here; those of eight are still as the profile believed."""
    policy = profiled(partial(memory_bound, 0.9), 8, tmp_path)
    one, eight = memory_bound(0.9), memory_bound(0.9)
    one.run(policy, 1, 30)
    eight.numbers = 1000
    eight.run(policy, 8, 30)
    assert one.gammas.count(0) >= 2
    assert eight.gammas.count(0) >= 2


@pytest.mark.slow
def test_prompts_that_fill_the_context_leave_what_room_there_is(tmp_path):
    cfg = composed(tmp_path, "batch=2", "max_new_tokens=2")
    pair = load_pair(cfg)
    prompts = [Prompt(i, i, "c", [i + 1] * (pair.context_length - 2)) for i in range(2)]
    assert [len(row.output_ids) for row in decode(cfg, pair, prompts).rows] == [2, 2]
    (path,) = (tmp_path / "draft_tables").iterdir()
    assert sorted(json.loads(path.read_text())["trials"]) == ["1", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("drafter", nightly_but(["prompt_lookup", "scripted", "self"], "prompt_lookup"))
def test_other_drafters_are_measured_too(drafter, tmp_path):
    cfg = composed(tmp_path, "batch=3", f"drafter={drafter}")
    pair = load_pair(cfg)
    prompts = [Prompt(10 + i, i, "c", [(7 * i + j) % 5 for j in range(9 + i)]) for i in range(2)]
    plain = composed(tmp_path, "batch=1", "drafter=none", "draft_length=fixed")
    expected = {row.index: row.output_ids for row in decode(plain, pair, prompts).rows}
    rows = decode(cfg, pair, prompts, known_output=lambda row: expected[row.index]).rows
    assert {row.index: row.output_ids for row in rows} == expected
    (path,) = (tmp_path / "draft_tables").iterdir()
    trials = read_trials(path)
    assert sorted(trials) == [1, 2, 3]
    assert all(len(trial.tried) == gamma for by_gamma in trials.values() for gamma, trial in by_gamma.items())
    if drafter == "scripted":
        for by_gamma in trials.values():
            assert all(trial.tried[0] == trial.num_row_rounds for gamma, trial in by_gamma.items() if gamma)


def test_profiles_are_printed_and_those_of_another_form_are_not(tmp_path, capsys):
    (tmp_path / "draft_tables").mkdir()
    old = {"settings": {"pair": "x"}, "trials": {"1": {"0": {"draft_s": 0, "verify_s": 1, "num_accepted": 0}}}}
    (tmp_path / "draft_tables" / "old.json").write_text(json.dumps(old))
    assert show_profiles(tmp_path) == 1
    assert "no profile here" in capsys.readouterr().err
    profiled(partial(memory_bound, 0.5), 2, tmp_path)
    assert show_profiles(tmp_path) == 0
    assert capsys.readouterr().out.count("profiled gamma") == 1
