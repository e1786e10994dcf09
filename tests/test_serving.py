"""Online serving: who arrives when, who waits for how long, and conversations whose history is what was said."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from cases import short_only
from conftest import greedy_alone
from harness import make_engine
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from specdec import assets
from specdec.config.resolve import resolve
from specdec.core.clock import Clock, VirtualClock
from specdec.core.files import read_lines
from specdec.core.prompts import Prompt
from specdec.core.sequence import Sequence, SequencePool
from specdec.errors import ConfigError, DataError
from specdec.models import pair as pair_module
from specdec.models.checkpoints import load_tokenizer
from specdec.models.pair import load_pair
from specdec.run.decode import conversations
from specdec.run.runner import run_point
from specdec.run.serving.conversations import Conversations
from specdec.run.serving.figures import ServingLog
from specdec.run.serving.poisson import PoissonArrivals
from specdec.run.serving.queue import ArrivalQueue
from specdec.run.serving.trace import TraceArrivals
from specdec.schedulers.order import Fifo, Sorted

# --- arrivals and the queue ---------------------------------------------------------------------------------------


def test_poisson_arrivals_have_their_rate_and_depend_on_nothing_but_the_seed():
    arrivals = PoissonArrivals(rate=4.0, think_s=0.5, seed=3)
    times = arrivals.times(4000)
    assert times == sorted(times)
    assert times[-1] / 4000 == pytest.approx(1 / 4, rel=0.05)
    gaps = [b - a for a, b in pairwise(times)]
    assert sum(gap > 0.25 for gap in gaps) / len(gaps) == pytest.approx(2.718281828**-1, abs=0.03)
    assert PoissonArrivals(rate=4.0, seed=3).times(100) == times[:100]
    assert PoissonArrivals(rate=4.0, seed=4).times(100) != times[:100]
    thinking = [arrivals.think(index) for index in range(4000)]
    assert sum(thinking) / 4000 == pytest.approx(0.5, rel=0.06)
    assert [arrivals.think(index) for index in reversed(range(10))] == thinking[9::-1], "whoever is served first"


def test_a_trace_starts_at_zero_and_may_be_sped_up(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps({"arrival_s": time}) + "\n" for time in (12.0, 10.0, 16.0, 99.0)))
    assert TraceArrivals(path=str(path), speed=2.0).times(3) == [1.0, 0.0, 3.0]
    with pytest.raises(DataError, match="has 4 arrivals for 5 conversations"):
        TraceArrivals(path=str(path)).times(5)
    path.write_text('{"arrival_s": 1}\n{"arrived": 2}\n')
    with pytest.raises(DataError, match="line 2: no number under arrival_s"):
        TraceArrivals(path=str(path)).times(2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PoissonArrivals(rate=0), "arrivals.rate=0"),
        (lambda: PoissonArrivals(think_s=-1), "arrivals.think_s=-1"),
        (lambda: PoissonArrivals(clock="wall"), "unknown arrivals.clock 'wall'"),
        (lambda: TraceArrivals(path="nowhere.jsonl"), "arrivals.path=nowhere.jsonl: no such file"),
    ],
)
def test_bad_arrivals_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_the_virtual_clock_skips_idle_time_and_counts_rounds():
    clock = VirtualClock()
    clock.wait_until(100.0)
    assert clock.now() == pytest.approx(100.0)
    with clock.stage("verify"):
        within = clock.now()
    assert clock.now() > within >= 100.0
    clock.wait_until(50.0)
    assert 100.0 < clock.now() < 101.0, "the past cannot be waited for"
    assert sum(clock.seconds.values()) == pytest.approx(clock.now() - 100.0)


def test_the_real_clock_waits():
    clock = Clock()
    start = clock.now()
    clock.wait_until(start + 0.05)
    assert clock.now() - start >= 0.05


def test_rows_enter_the_pool_when_they_arrive_in_the_order_of_the_policy():
    clock = VirtualClock()
    lengths, moments = (9, 3, 5, 1), (1.0, 1.0, 1.0, 2.0)
    rows = [Sequence(i, [0] * n, 1, arrived_s=at) for i, (n, at) in enumerate(zip(lengths, moments, strict=True))]
    queue, pool = ArrivalQueue(rows, Sorted(), clock, lambda _: None), SequencePool([])
    assert queue.feed(pool)
    assert clock.now() == pytest.approx(1.0, abs=1e-3), "idle time is skipped"
    assert [row.index for row in pool.waiting] == [1, 2, 0]
    pool.activate(1)
    clock.wait_until(2.0)
    assert queue.feed(pool)
    assert [row.index for row in pool.waiting] == [3, 2, 0], "who is there already has a place by the same policy"


def test_every_row_is_served_after_it_arrived_and_exact(target, draft, prompts):
    clock = VirtualClock()
    engine = make_engine(target, draft, scheduler="continuous", batch=2, clock=clock)
    moments = PoissonArrivals(rate=1.0, seed=1).times(len(prompts))
    rows = [Sequence(i, list(p), 8, arrived_s=at) for i, (p, at) in enumerate(zip(prompts, moments, strict=True))]
    followed = {0: Sequence(99, [1, 2, 3], 8), 5: Sequence(98, [4], 8)}

    def follow_up(row: Sequence) -> Sequence | None:
        after = followed.get(row.index)
        if after is not None:
            after.arrived_s = row.finished_s + 0.25
        return after

    queue, pool, log = ArrivalQueue(rows, Fifo(), clock, follow_up), SequencePool([]), ServingLog()
    while queue.feed(pool):
        outcome = engine.step(pool)
        queue.observe(outcome)
        log.observe(outcome, pool, clock.now())
    assert sorted(row.index for row in queue.rows) == [*range(len(prompts)), 98, 99]
    for row in queue.rows:
        assert row.arrived_s <= row.admitted_s <= row.first_token_s <= row.finished_s
        assert row.output_ids == greedy_alone(target, row.prompt_ids, 8, frozenset())
    figures = log.summary()
    assert figures["makespan_s"] >= moments[-1] - moments[0]
    assert 0 < figures["utilization"] < 1, "there was idle time, and it was skipped"
    assert figures["served_tokens_per_s"] == pytest.approx(8 * len(queue.rows) / figures["makespan_s"])


# --- conversations ------------------------------------------------------------------------------------------------

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def tokenizer():
    return load_tokenizer("asset:tiny/tokenizer", compose_pair())


def compose_pair():
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        return compose(config_name="config").pair


def talks(tokenizer, **options):
    turns = ["def first(self):", "def second(self):", "def third(self):"]
    prompts = [Prompt(i, 7, "c", tokenizer(text)["input_ids"], i, text) for i, text in enumerate(turns)]
    other = Prompt(3, 8, "c", tokenizer("import os")["input_ids"], 0, "import os")
    settings = {"chat_template": "auto", "overlong": "refuse", "limit": 100, **options}
    return Conversations([*prompts, other], tokenizer, frozenset({0}), **settings), prompts


def test_the_next_prompt_holds_everything_said_so_far(tokenizer):
    conversation, prompts = talks(tokenizer)
    assert [prompt.index for prompt in conversation.openings()] == [0, 3]
    answer = tokenizer(" return 1")["input_ids"]
    second = conversation.follow_up(0, prompts[0].ids, answer)
    between = tokenizer("\n" + prompts[1].text, add_special_tokens=False)["input_ids"]
    assert second.ids == prompts[0].ids + answer + between
    assert (second.index, second.question_id) == (1, 7)
    assert conversation.follow_up(0, prompts[0].ids, [*answer, 0]).ids == second.ids, "the stop token was not said"
    third = conversation.follow_up(1, second.ids, answer)
    assert third.ids[: len(second.ids) + len(answer)] == second.ids + answer
    assert conversation.follow_up(2, third.ids, answer) is None, "the last turn"
    assert conversation.follow_up(3, [1], [2]) is None, "a conversation of one turn"


def test_a_chat_template_stands_between_the_turns(tokenizer):
    tokenizer.chat_template = TEMPLATE
    conversation, prompts = talks(tokenizer)
    second = conversation.follow_up(0, prompts[0].ids, [5, 6])
    text = tokenizer.decode(second.ids[len(prompts[0].ids) + 2 :])
    assert text == "<end><user>def second(self):<end><assistant>"
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(DataError, match="drops earlier answers"):
        conversation.follow_up(0, prompts[0].ids, [5, 6])


def test_a_history_that_does_not_fit(tokenizer):
    prompt = [3] * 99
    with pytest.raises(DataError, match=r"question_id 7: turn 2 has .* data.overlong=truncate"):
        talks(tokenizer)[0].follow_up(0, prompt, [4])
    assert talks(tokenizer, overlong="skip")[0].follow_up(0, prompt, [4]) is None
    cut = talks(tokenizer, overlong="truncate")[0].follow_up(0, prompt, [4])
    whole = talks(tokenizer, limit=999)[0].follow_up(0, prompt, [4])
    assert cut.ids == whole.ids[-100:]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """One folder for all runs, so that they share their references."""
    return tmp_path_factory.mktemp("results")


def composed(*overrides: str) -> DictConfig:
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        return compose(config_name="config", overrides=list(overrides))


def serve(results: Path, *overrides: str) -> tuple[dict, list[dict]]:
    arguments = ["experiment=paper_table4", "data.num_prompts=9", "max_new_tokens=5"]
    arguments += ["progress=false", f"results_dir={results}", *overrides]
    summary = run_point(composed(*arguments), arguments)
    return summary, list(read_lines(Path(summary["path"]) / "samples.jsonl"))


@pytest.mark.parametrize("scheduler", short_only(["eqspec", "exspec", "exspec_bound", "continuous"], "continuous"))
def test_serving_is_exact_and_reports_what_it_took(results, scheduler):
    several_rounds = "gamma=1"  # for 5 tokens, so that the third row has to wait for one of the first two
    summary, samples = serve(results, f"scheduler={scheduler}", "batch=2", "arrivals.rate=2000", several_rounds)
    assert summary["num_exact"] == summary["num_prompts"] == 9
    assert summary["experiments"] == ["paper_table4"]
    for key in ("latency_s", "ttft_s", "token_s", "gap_s", "wait_rounds"):
        assert 0 <= summary[key]["p50"] <= summary[key]["p90"] <= summary[key]["p99"]
    assert 0 < summary["utilization"] <= 1.0001
    turns = [sample.get("turn", 0) for sample in samples]
    assert turns.count(1) >= 2
    for before, sample in pairwise(samples):
        if sample.get("turn"):
            answer = before["output_ids"]
            start = len(sample["prompt_ids"]) - sample["num_prompt_tokens"] + before["num_prompt_tokens"]
            assert sample["prompt_ids"][start : start + 3] == answer[:3], "the history is what was said"
    series = list(read_lines(Path(summary["path"]) / "queue.jsonl"))
    assert [point["time_s"] for point in series] == sorted(point["time_s"] for point in series)
    assert max(point["num_waiting"] for point in series) == summary["queue_length"]["max"]
    assert scheduler.startswith("exspec") or summary["queue_length"]["max"] > 0, "exspec's window holds them all"
    assert max(point["num_running"] for point in series) == 2
    assert series[-1]["num_active"] == series[-1]["num_waiting"] == 0


@pytest.mark.slow
def test_a_wrong_method_is_compared_with_the_target_on_the_same_history(results):
    """BSP's answers differ, so the next prompts do: their reference is made for the prompts that there really were."""
    from transformers import AutoModelForCausalLM

    overrides = (
        "scheduler=bsp",
        "allow_incorrect=true",
        "batch=2",
        "arrivals.rate=100",
        "max_new_tokens=8",
        "data.num_prompts=4",
        "gamma=1",  # many rounds, and so many holes
    )
    summary, samples = serve(results, *overrides)
    assert summary["num_exact"] < 4
    (pair,) = pair_module._cache.values()
    assert pair.target.execution.name != "eager", "a reference that was decoded in between leaves no trace"
    model = AutoModelForCausalLM.from_pretrained(assets.resolve("asset:tiny/target")).eval()
    later = [sample for sample in samples if "prompt_ids" in sample]
    assert later
    for sample in later:
        prompt = torch.tensor([sample["prompt_ids"]])
        alone = model.generate(prompt, do_sample=False, max_new_tokens=8, pad_token_id=0)[0, prompt.shape[1] :]
        assert sample["exact"] == (sample["output_ids"] == alone.tolist())


def test_several_processes_cannot_serve_one_queue():
    with pytest.raises(ConfigError, match=r"arrivals=poisson.*runner.devices=1"):
        resolve(composed("arrivals=poisson", "runner.devices=2"))


@pytest.mark.slow
def test_later_turns_keep_to_the_longest_input_too():
    cfg = resolve(composed("data=conversations", "data.turns=conversation", "data.max_input_tokens=30"))
    prompts = [Prompt(0, 1, "a", [3] * 20), Prompt(1, 1, "a", [], turn=1, text="and then?")]
    follow_up = conversations(cfg, load_pair(cfg), prompts).follow_up(0, prompts[0].ids, [4] * 20)
    assert len(follow_up.ids) == 30, "the oldest tokens are dropped"
