"""Run folders, the reference store, and the figures derived from counts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hypothesis import given
from hypothesis import strategies as st

import specdec.config
from specdec.config.identity import identity
from specdec.config.resolve import resolve
from specdec.core.clock import STAGES, Clock
from specdec.core.files import read_lines, write_atomically
from specdec.core.metrics import quantile, timing
from specdec.equivalence.store import ReferenceStore, compare
from specdec.run.folder import RunFolder

ROOT = Path(__file__).parent.parent


def composed(*overrides):
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        return resolve(compose(config_name="config", overrides=list(overrides)))


def test_identity_ignores_what_does_not_change_the_result():
    base = RunFolder("r", identity(composed()))
    for same in ("logger=csv", "results_dir=elsewhere", "force=true", "progress=false", "reference=false"):
        assert RunFolder("r", identity(composed(same))).hash == base.hash
    for other in ("batch=5", "gamma=4", "scheduler=exspec", "data.num_prompts=3", "runner.dtype=float64", "seed=1"):
        assert RunFolder("r", identity(composed(other))).hash != base.hash
    plain = identity(composed("scheduler=plain"))
    assert plain == identity(composed("scheduler=plain", "gamma=9")), "plain decoding drafts nothing"


@pytest.mark.nightly
def test_every_preset_composes():
    root = Path(specdec.__file__).parent / "conf"
    presets = [f"{file.parent.name}={file.stem}" for file in sorted(root.glob("*/*.yaml"))]
    assert len(presets) > 15
    for preset in presets:
        if not preset.startswith(("hydra", "recipe", "experiment=paper")):  # test_presets.py has those
            composed(preset, "allow_incorrect=true")


def test_a_summary_means_done(tmp_path):
    folder = RunFolder(tmp_path, {"a": 1})
    assert folder.finished() is None
    folder.start({"env": 1})
    assert folder.finished() is None
    folder.finish([{"index": 0}], {"status": "done"})
    assert folder.finished() == {"status": "done"}
    folder.start({})
    assert folder.finished() is None
    assert folder.samples() == {0: {"index": 0}}, "what was finished stays"
    folder.clear()
    assert folder.samples() == {}


def test_an_explanation_counts_whichever_process_made_it(tmp_path):
    folder = RunFolder(tmp_path, {"a": 1})
    folder.start({})
    explained = {"index": 3, "explanation": {"kind": "near-tie"}}
    for writer, owner in ((0, 1), (1, 0)):
        for rank, record in ((owner, {"index": 3, "explanation": None}), (writer, explained)):
            with folder.open_lines("samples", rank) as lines:
                lines.write(record)
        assert folder.samples() == {3: explained}
        folder.clear()
        folder.start({})


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_atomically(path, "old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left behind"


def test_torn_lines_are_left_out(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"index": 0}\n{"index": 1}\n{"ind')
    assert [record["index"] for record in read_lines(path)] == [0, 1]


APPEND = """
import sys
from pathlib import Path
from specdec.core.files import append_line
for i in range(200):
    append_line(Path(sys.argv[1]), {"process": sys.argv[2], "i": i, "filler": "x" * 300})
"""


def test_lines_of_several_processes_do_not_mix(tmp_path):
    path = tmp_path / "points.jsonl"
    workers = [subprocess.Popen([sys.executable, "-c", APPEND, str(path), str(n)], cwd=ROOT) for n in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    records = list(read_lines(path))
    assert len(path.read_text().splitlines()) == len(records) == 400


def test_reference_store_survives_a_torn_line(tmp_path):
    store = ReferenceStore(tmp_path, {"pair": "x"})
    store.add([1, 2], [3, 4])
    with store.path.open("a") as stream:
        stream.write('{"prompt": "abc", "outp')
    again = ReferenceStore(tmp_path, {"pair": "x"})
    assert again.get([1, 2]) == [3, 4]
    again.add([5], [6])
    last = ReferenceStore(tmp_path, {"pair": "x"})
    assert (last.get([1, 2]), last.get([5]), last.get([9])) == ([3, 4], [6], None)
    assert ReferenceStore(tmp_path, {"pair": "y"}).get([1, 2]) is None


tokens = st.lists(st.integers(0, 3), max_size=8)


@given(tokens, tokens)
def test_compare(output, reference):
    match = compare(output, reference)
    assert match.exact == (output == reference)
    if match.exact:
        assert match.first_divergence is None
        assert match.share == 1.0
    else:
        first = match.first_divergence
        assert output[:first] == reference[:first]
        assert output[first : first + 1] != reference[first : first + 1]


def test_a_truncated_output_is_a_divergence():
    """Equality by zip would let it pass."""
    assert not compare([1, 2], [1, 2, 3]).exact
    assert compare([1, 2], [1, 2, 3]).first_divergence == 2


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(0, 1))
def test_quantile_is_numpys(values, q):
    assert quantile(values, q) == pytest.approx(float(np.quantile(values, q)), rel=1e-9, abs=1e-6)


def test_nested_stages_never_count_twice(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(now)))
    clock = Clock()  # 0
    with clock.stage("other"), clock.stage("verify"), clock.stage("align"):  # 1, 2, 3
        pass
    # 4, 5, 6 close them, innermost first
    assert {stage: s for stage, s in clock.seconds.items() if s} == {"other": 2.0, "verify": 2.0, "align": 1.0}
    figures = timing(clock.seconds, 10)
    assert figures["decode_s"] == 5.0
    assert sum(clock.seconds[stage] for stage in STAGES if stage != "prefill") == figures["decode_s"]


def test_summary_refuses_nan(tmp_path):
    folder = RunFolder(tmp_path, {"a": 1})
    folder.start({})
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.finish([], {"status": "done", "tokens_per_s": float("nan")})
    assert folder.finished() is None


def test_json_of_a_folder_is_readable_by_hand(tmp_path):
    folder = RunFolder(tmp_path, {"batch": 2})
    folder.start({"python": "3"})
    assert (folder.path / "config.yaml").read_text() == "batch: 2\n"
    assert json.loads((folder.path / "env.json").read_text()) == {"python": "3"}
