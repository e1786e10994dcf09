"""Loggers: what they are told and write, and that nothing of it is secret."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from conftest import SECRET

from specdec.core.clock import Clock
from specdec.core.round import Round
from specdec.core.sequence import Sequence
from specdec.run.loggers import meter as meter_module
from specdec.run.loggers.base import Logger
from specdec.run.loggers.csv import CsvLogger
from specdec.run.loggers.meter import StepMeter
from specdec.run.loggers.secrets import RedactingLogger, is_secret, scrub
from specdec.run.loggers.tables import by_category, run_name, sample_rows


@pytest.mark.parametrize("fault", ["data.path=/no/such/folder/prompts.jsonl", "data.turns=bogus"])
def test_a_point_that_fails_before_it_starts_is_told_to_its_logger(logged, monkeypatch, fault):
    told: list[str] = []
    monkeypatch.setattr(CsvLogger, "fail", lambda self, message: told.append(message))
    code, _ = logged("logger=csv", *fault.split())
    assert code == 1
    assert len(told) == 1
    assert "/no/such/folder" in told[0] or "bogus" in told[0]


def test_a_logger_must_record_what_is_finished():
    class Misspelt(Logger):
        def finsh(self, summary, samples):
            raise NotImplementedError

    with pytest.raises(TypeError, match="finish"):
        Misspelt()


def test_tensorboard_events_are_read_back(logged, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    code, _ = logged("logger=tensorboard")
    assert code == 0
    (summary,) = [json.loads(path.read_text()) for path in tmp_path.glob("*/summary.json")]
    events = EventAccumulator(str(tmp_path / "tensorboard" / "runs" / summary["hash"])).Reload()
    tags = events.Tags()
    assert len(events.Scalars("tokens_per_s")) == summary["num_verify_calls"]
    assert events.Scalars("summary/exact_match")[0].value == 1.0
    assert events.Scalars("summary/latency_s.p99")[0].value == pytest.approx(summary["latency_s"]["p99"])
    assert "accepted_lengths" in tags["histograms"]
    assert {"config/text_summary", "samples/text_summary", "categories/text_summary"} <= set(tags["tensors"])
    for path in (tmp_path / "tensorboard").rglob("events*"):
        assert SECRET.encode() not in path.read_bytes()


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *[(name, True) for name in ("WANDB_API_KEY", "hf_token", "HF_TOKEN", "token", "db.password", "AWS_SECRET")],
        *[(name, True) for name in ("api_key", "apikey", "access_key", "MY-CREDENTIALS")],
        *[(name, False) for name in ("stop_tokens", "max_new_tokens", "tokenizer", "num_tokens", "tokens_per_s")],
        *[(name, False) for name in ("keys", "monkey", "draft_tokenizer", "prefill_tokens")],
    ],
)
def test_names_of_secrets(name, secret):
    assert is_secret(name) == secret


def test_scrubbing_hides_values_and_leaves_the_rest(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", SECRET)
    monkeypatch.setenv("SHORT_TOKEN", "a")
    document = {
        "overrides": ["batch=4", "+logger.api_key=abc", f"data.path=/x/{SECRET}/y", "stop_tokens=[1,2]"],
        "pair": {"token": "abc", "name": "tiny", "target": "https://user:pw@host/model"},
        "number": 3,
        "nothing": None,
        "token": None,
    }
    assert scrub(document) == {
        "overrides": ["batch=4", "+logger.api_key=***", "data.path=/x/***/y", "stop_tokens=[1,2]"],
        "pair": {"token": "***", "name": "tiny", "target": "https://***@host/model"},
        "number": 3,
        "nothing": None,
        "token": None,
    }
    assert scrub("hf_abcdefghijklmnopqrst is not shown") == "*** is not shown"


class Kept(Logger):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.rounds: list[tuple[int, dict[str, float]]] = []
        self.failed = ""

    def start(self, *_: object) -> None: ...

    def round(self, step: int, metrics: dict[str, float]) -> None:
        self.rounds.append((step, metrics))

    def finish(self, *_: object) -> None: ...

    def fail(self, message: str) -> None:
        self.failed = message


def test_step_metrics_are_of_the_last_stretch_and_come_about_once_a_second(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(meter_module.time, "monotonic", lambda: now[0])
    logger, clock = Kept(), Clock()
    meter = StepMeter(RedactingLogger(logger), every_s=1.0)
    row = Sequence(0, [1], 99)
    for step in range(1, 101):
        emitted = [7] * (2 if step <= 50 else 4)
        outcome = Round([row], [5], [len(emitted) - 1], [emitted], same_length=True)
        now[0] += 0.1
        clock.seconds["verify"] += 0.03
        clock.seconds["draft"] += 0.01
        meter.observe(outcome, clock)
    assert 9 <= len(logger.rounds) <= 10
    steps = [step for step, _ in logger.rounds]
    assert all(9 <= b - a <= 11 for a, b in pairwise(steps))
    first, last = logger.rounds[0][1], logger.rounds[-1][1]
    assert first["tokens_per_s"] == pytest.approx(2 / 0.04)
    assert last["tokens_per_s"] == pytest.approx(4 / 0.04), "of the stretch, not of the whole run"
    assert (first["acceptance_rate"], last["acceptance_rate"]) == (pytest.approx(1 / 5), pytest.approx(3 / 5))
    assert last["time/verify_share"] == pytest.approx(0.75)


def sample(index: int, category: str, exact: bool) -> dict:
    return {
        "index": index,
        "question_id": index,
        "category": category,
        "num_prompt_tokens": 3,
        "output_ids": [1, 2, 3],
        "text": "x",
        "stop_reason": "length",
        "exact": exact,
        "first_divergence": None if exact else 1,
        "explanation": None if exact else {"kind": "near-tie", "reason": "why"},
        "accepted_lengths": [1, 0],
        "num_drafted": 4,
        "latency_s": 1.0 + index,
    }


def test_tables_put_divergences_first_and_sum_by_category():
    samples = [sample(0, "b", True), sample(1, "a", True), sample(2, "b", False)]
    assert [row["index"] for row in sample_rows(samples, 2)] == [2, 0]
    assert sample_rows(samples, 1)[0]["divergence"] == "near-tie"
    first, second = by_category(samples)
    assert (first["category"], first["num_prompts"], first["num_divergences"]) == ("a", 1, 0)
    assert (second["num_prompts"], second["num_divergences"], second["acceptance_rate"]) == (2, 1, 2 / 8)
    assert second["latency_s_p50"] == 2.0


def test_runs_are_named_by_what_tells_them_apart():
    overrides = ["scheduler=exspec", "batch=4", "logger=wandb", "logger.mode=offline", "results_dir=/x"]
    assert run_name("abc", overrides) == "scheduler=exspec batch=4"
    assert run_name("abc", ["logger=wandb"]) == "abc"
    assert run_name("abc", ["pair.hidden_size=64", "batch=4"]) == "batch=4 pair.hidden_size=64"
    assert len(run_name("abc", [f"data.path={'x' * 300}", "batch=4"])) == 128
