"""W&B: an offline run is read back from disk and holds no secret, and a failed point closes its run."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path

import pytest
from conftest import SECRET

from specdec.core.files import read_lines
from specdec.errors import ConfigError
from specdec.run.loggers.wandb import WandbLogger


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
