"""Loggers: what they write is read back from disk, nothing of it is secret, and a failed point is closed too."""

from __future__ import annotations

import json
import struct
import time
from itertools import pairwise
from pathlib import Path

import pytest

from specdec.core.clock import Clock
from specdec.core.files import read_lines
from specdec.core.round import Round
from specdec.core.sequence import Sequence
from specdec.errors import ConfigError
from specdec.run.loggers import meter as meter_module
from specdec.run.loggers.base import Logger
from specdec.run.loggers.csv import CsvLogger
from specdec.run.loggers.meter import StepMeter
from specdec.run.loggers.secrets import RedactingLogger, is_secret, scrub
from specdec.run.loggers.tables import by_category, run_name, sample_rows
from specdec.run.loggers.wandb import WandbLogger

ROOT = Path(__file__).parent.parent
SECRET = "s3cr3t-value-of-a-token"
SMALL = [
    *("pair=synthetic", "pair.hidden_size=64", "pair.num_layers=3", "data.num_prompts=4", "data.max_input_tokens=40"),
    *("data.overlong=truncate", "max_new_tokens=8", "baseline=false", "batch=2"),
]


@pytest.fixture
def logged(run, tmp_path, monkeypatch):
    """Run the command line with a secret in the environment; returns exit code and stderr."""
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(meter_module, "EVERY_S", 0.0)

    def call(*arguments: str) -> tuple[int, str]:
        code, _, err = run(*SMALL, *arguments, results=tmp_path)
        return code, err

    return call


def wandb_records(folder: Path) -> list:
    """Records of the last offline run in a folder, once W&B's own process has written the last of them."""
    path = sorted(folder.glob("wandb/offline-run-*/*.wandb"))[-1]  # their names begin with the time
    for _ in range(300):
        records = parsed_records(path.read_bytes())
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            break
        time.sleep(0.1)
    return records


def parsed_records(data: bytes) -> list:
    """The file is a log in the format of LevelDB, of protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    records, parts = [], b""
    at = 7  # after the file's own header
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            records.append(record)
            parts = b""
    return records


def items(records: list, kind: str, field: str) -> list[dict]:
    """Decoded key-value updates of one kind, one dict per record."""
    found = []
    for record in records:
        if record.WhichOneof("record_type") == kind:
            updates = getattr(getattr(record, kind), field)
            found.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in updates})
    return found


def merged(updates: list[dict]) -> dict:
    return {key: value for update in updates for key, value in update.items()}


def test_an_offline_wandb_run_holds_everything_but_secrets(logged, tmp_path):
    code, _ = logged("logger=wandb", "logger.mode=offline", f"logger.group={SECRET}x", "gamma=3", "batch=2", "-m")
    assert code == 0
    records = wandb_records(tmp_path)
    (summary,) = [json.loads(path.read_text()) for path in tmp_path.glob("*/summary.json")]
    (started,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert "gamma=3" in started.display_name
    assert "logger" not in started.display_name
    config = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in started.config.update}
    assert config["hash"] == summary["hash"]
    assert config["gamma"] == 3
    assert config["pair"]["name"] == "synthetic"
    assert config["git_revision"] is None or len(config["git_revision"]) >= 40
    assert config["versions"]["torch"]
    history = items(records, "history", "item")
    steps = [update for update in history if "tokens_per_s" in update]
    assert len(steps) == summary["num_verify_calls"], "EVERY_S is 0 in this test"
    for name in ("acceptance_rate", "peak_memory_bytes", "time/verify_share", "time/draft_share", "num_finished"):
        assert name in steps[-1]
    shares = [value for name, value in steps[-1].items() if name.startswith("time/")]
    assert sum(shares) == pytest.approx(1.0)
    assert merged(history)["accepted_lengths.values"] == summary["accepted_histogram"]
    places = next(iter(tmp_path.rglob("media/table/acceptance_by_place*.json")))
    assert [row[1] for row in json.loads(places.read_text())["data"]] == summary["acceptance_by_place"]
    final = merged(items(records, "summary", "update"))
    for name in ("exact_match", "num_divergences", "tokens_per_s", "status"):
        assert final[name] == summary[name]
    (exit_record,) = [record.exit for record in records if record.WhichOneof("record_type") == "exit"]
    assert exit_record.exit_code == 0
    tables = {path.name.split("_")[0]: json.loads(path.read_text()) for path in tmp_path.rglob("media/table/*.json")}
    assert len(tables["samples"]["data"]) == 4
    assert {"text", "divergence", "exact"} <= set(tables["samples"]["columns"])
    assert "acceptance_rate" in tables["categories"]["columns"]
    sweeps = [path.name for path in (tmp_path / "sweeps").iterdir()]
    assert len(sweeps) == 1
    for path in (tmp_path / "wandb").rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path
    (env,) = tmp_path.glob("*/env.json")
    assert SECRET not in env.read_text()
    assert json.loads(env.read_text())["sweep"] == sweeps[0]


@pytest.mark.slow
def test_a_point_that_resumes_goes_on_with_its_wandb_run(logged, tmp_path):
    """`wandb sync` joins folders of one id in the order of their times."""

    def started_and_steps() -> tuple[str, list[int]]:
        records = wandb_records(tmp_path)
        (started,) = [record.run.run_id for record in records if record.WhichOneof("record_type") == "run"]
        return started, [record.history.step.num for record in records if record.WhichOneof("record_type") == "history"]

    assert logged("logger=wandb", "logger.mode=offline")[0] == 0
    first, steps = started_and_steps()
    (folder,) = [path.parent for path in tmp_path.glob("*/summary.json")]
    (folder / "summary.json").unlink()
    lines = (folder / "samples.jsonl").read_text().splitlines(keepends=True)
    (folder / "samples.jsonl").write_text(lines[0])
    time.sleep(1.1)  # the name of a folder tells seconds
    assert logged("logger=wandb", "logger.mode=offline")[0] == 0
    second, later = started_and_steps()
    assert second == first
    assert first.startswith(folder.name)
    assert min(later) > len(list(read_lines(folder / "rounds.jsonl"))) - len(later)
    assert max(steps) <= min(later)
    assert logged("logger=wandb", "logger.mode=offline", "force=true")[0] == 0
    assert started_and_steps()[0] != first, "a point that is computed anew is another run"


def test_a_point_that_fails_closes_its_run(logged, tmp_path, monkeypatch):
    import specdec.run.point

    def broken(*_: object) -> None:
        raise RuntimeError(f"the machine says {SECRET}")

    monkeypatch.setattr(specdec.run.point, "decode_rows", broken)
    code, _ = logged("logger=wandb", "logger.mode=offline")
    assert code == 1
    records = wandb_records(tmp_path)
    (exit_record,) = [record.exit for record in records if record.WhichOneof("record_type") == "exit"]
    assert exit_record.exit_code == 1
    final = merged(items(records, "summary", "update"))
    assert final["status"] == "failed"
    assert final["error"] == "RuntimeError: the machine says ***"


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


def test_wandb_is_offline_unless_a_key_is_there(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    credentials = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(credentials))
    assert WandbLogger()._mode == "offline"
    for host in ("api.wandb.ai", "api.forge.coreweave.com"):
        credentials.write_text(f"machine {host}\n  login user\n  password 0123\n")
        credentials.chmod(0o600)
        assert WandbLogger()._mode == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080")
    assert WandbLogger()._mode == "offline"
    credentials.write_text("machine wandb.example.org:8080\n  login user\n  password 0123\n")
    assert WandbLogger()._mode == "online"
    monkeypatch.delenv("WANDB_BASE_URL")
    assert WandbLogger(mode="offline")._mode == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert WandbLogger()._mode == "disabled"
    monkeypatch.delenv("WANDB_MODE")
    credentials.unlink()
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    assert WandbLogger()._mode == "online"
    with pytest.raises(ConfigError, match=r"unknown logger.mode 'onlin'.*did you mean 'online'"):
        WandbLogger(mode="onlin")


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
