"""What a suite checks on a device, its time limit, and `suite=gpu` as a whole on a pretended GPU."""

from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf
from pretend_cuda import NAME, PretendCuda

from specdec.bench import machine
from specdec.bench.__main__ import main
from specdec.bench.plan import steps
from specdec.bench.prompts import count_overrides
from specdec.bench.suite import FOLDER, load_suite
from specdec.core.files import read_lines
from specdec.run import forward_bound

SMALL = ["pair=synthetic", "pair.hidden_size=64", "pair.num_layers=3"]


@pytest.fixture(autouse=True)
def _all_cores(monkeypatch):
    monkeypatch.setattr(machine.os, "sched_setaffinity", lambda *_: None, raising=False)


@pytest.fixture
def bench(tmp_path):
    """Run a suite of two checks and two measurements; returns the exit code and the document."""
    group = {"pair": "small", "methods": ["right"], "batch": 2, "num_prompts": 4, "max_new_tokens": 6}
    files = {
        "pairs.yaml": {"small": SMALL},
        "peers.yaml": {},
        "methods.yaml": {
            "right": {"overrides": ["scheduler=eqspec"]},
            "wrong": {"overrides": ["scheduler=dsd", "allow_incorrect=true"]},
        },
        "suite/own.yaml": {
            "title": "Own",
            "repeats": 2,
            "progress": False,
            "kit": {"plugins": ["scheduler=static"], "scale": 0.01},
            "equivalence": {"same": group},
            "studies": {
                "s": {"title": "S", "pairs": ["small"], "methods": ["right"], "batches": [1, 2], "min_prompts": 2}
            },
        },
    }
    for name, document in files.items():
        path = tmp_path / "speed" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(document), path)

    def call(*words: str) -> tuple[int, dict]:
        folders = [f"{name}={tmp_path / name}" for name in ("out", "cache")]
        code = main(["suite=own", f"folder={tmp_path / 'speed'}", *folders, "studies.s.max_new_tokens=4", *words])
        return code, json.loads((tmp_path / "out" / "results.json").read_text())

    return call


@pytest.mark.slow
def test_checks_come_first_and_are_kept(bench, tmp_path, capsys):
    code, document = bench()
    assert code == 0
    assert [(check["title"], check["passed"]) for check in document["checks"]] == [
        ("kit, scheduler=static", True),
        ("same, small, right, batch 2", True),
    ]
    assert document["checks"][1]["found"] == "4 of 4 exact, 0 explained, 0 failures"
    assert "## Checks (" in (tmp_path / "out" / "tables.md").read_text()
    before = list(read_lines(tmp_path / "out" / "checks.jsonl"))
    bench()
    assert list(read_lines(tmp_path / "out" / "checks.jsonl")) == before


@pytest.mark.slow
def test_a_check_that_fails_is_told_and_the_others_are_taken(bench, capsys):
    code, document = bench("equivalence.same.methods=[wrong,right]", "kit.plugins=[scheduler=none]")
    kit, wrong, right = document["checks"]
    assert code == 1
    assert (kit["status"], kit["passed"], wrong["passed"], right["passed"]) == ("failed", False, False, True)
    assert "unknown scheduler" in kit["found"]
    assert wrong["num_failures"] > 0
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["checks_not_passed"] == 2


@pytest.mark.nightly
def test_nothing_is_begun_when_the_time_is_over(bench, tmp_path):
    code, document = bench("minutes=0")
    assert code == 0
    assert {part["status"] for part in document["checks"] + document["cells"]} == {"no time left"}
    assert "no time left" in (tmp_path / "out" / "tables.md").read_text()
    _, document = bench("minutes=5")
    assert {part["status"] for part in document["checks"] + document["cells"]} == {"done"}


@pytest.mark.slow
def test_where_time_is_short_every_cell_is_measured_once_before_any_twice():
    def repeats(*words):
        suite, library = load_suite(["suite=quick", *words])
        return [step.repeat for step in steps(suite, library, "tiny")]

    assert repeats("minutes=5") == sorted(repeats())
    assert repeats() != sorted(repeats())


def test_built_in_prompts_are_enough_and_all_different(tmp_path):
    overrides = count_overrides("heldout", 480, tmp_path)
    lines = [json.loads(line)["prompt"] for line in (tmp_path / "prompts-480.jsonl").read_text().splitlines()]
    assert len(set(lines)) == len(lines) == 480
    assert f"data.path={tmp_path / 'prompts-480.jsonl'}" in overrides
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"prompt": "x"}) + "\n")
    assert f"data.path={file}" in count_overrides(str(file), 480, tmp_path)


@pytest.mark.nightly
def test_the_suite_for_a_gpu(tmp_path, monkeypatch):
    """All of it with few prompts and a small 7B: what runs on a GPU has run before."""
    for sizes in (forward_bound.COPIED_NUMBERS, forward_bound.PRODUCT_SIZE):
        monkeypatch.setitem(sizes, "cuda", sizes["cpu"])
    few = ["equivalence.float32.num_prompts=6", "equivalence.bfloat16.num_prompts=6", "minutes=30"]
    few += [
        "kit.plugins=[verifier=greedy]",
        "kit.scale=0.01",
        "studies.speed.batches=[1,4]",
        "repeats=1",
        "progress=false",
    ]
    small = "pair.hidden_size=256,pair.num_layers=3,pair.vocab_size=2048"
    folders = [f"folder={FOLDER}", f"out={tmp_path / 'out'}", f"cache={tmp_path / 'cache'}"]
    with PretendCuda():
        assert main(["suite=gpu", *folders, *few, f"studies.speed.overrides=[{small}]"]) == 0
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert all(check["passed"] for check in document["checks"])
    assert len(document["checks"]) == 5
    assert {cell["status"] for cell in document["cells"]} == {"done"}
    assert all(cell["bandwidth_share"]["value"] > 0 for cell in document["cells"])
    assert document["machine"]["device"] == NAME
    assert f"## Checks ({NAME})" in (tmp_path / "out" / "tables.md").read_text()
