"""Results folders of several machines joined: whole points, nothing lost, nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specdec import merge
from specdec.core.lock import locked


def point(folder: Path, name: str, token: int = 1, done: bool = True, experiments: tuple[str, ...] = ()) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("seed: 0\n")
    (path / "samples.jsonl").write_text(json.dumps({"index": 0, "output_ids": [token]}) + "\n")
    if done:
        summary = {"status": "done", "path": str(path), "experiments": list(experiments)}
        (path / "summary.json").write_text(json.dumps(summary))
    return path


@pytest.fixture
def folders(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    point(here, "aa", experiments=("one",))
    point(here, "bb", done=False)
    point(there, "aa", experiments=("two",))
    point(there, "bb", token=3)
    point(there, "cc")
    point(there, "dd", done=False)
    (there / "reference").mkdir()
    (there / "reference" / "x.jsonl").write_text("{}\n")
    return here, there


def summary(path: Path) -> dict:
    return json.loads((path / "summary.json").read_text())


def test_finished_points_are_copied_once_and_say_where_they_are(folders, capsys):
    here, there = folders
    before = {path: path.read_bytes() for path in there.rglob("*") if path.is_file()}
    assert merge.main([str(here), str(there)]) == 0
    told = capsys.readouterr().out
    assert "2 copied, 1 already there, 1 unfinished (left out)" in told
    assert f"{here}: 3 finished points" in told
    assert summary(here / "cc")["path"] == str(here / "cc")
    assert json.loads((here / "bb" / "samples.jsonl").read_text())["output_ids"] == [3]  # was unfinished here
    assert summary(here / "aa")["experiments"] == ["one", "two"]
    assert not (here / "dd").exists()
    assert (here / "reference" / "x.jsonl").exists()
    assert merge.main([str(here), str(there)]) == 0
    assert "3 already there, 1 unfinished" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in there.rglob("*") if path.is_file()} == before
    assert not list(here.glob(".*.*"))


def test_other_outputs_of_the_same_point_are_told_and_kept(folders, capsys):
    here, there = folders
    point(here, "cc", token=9)
    assert merge.main([str(here), str(there)]) == 1
    assert "1 already there WITH OTHER OUTPUTS (kept)" in capsys.readouterr().out
    assert json.loads((here / "cc" / "samples.jsonl").read_text())["output_ids"] == [9]


def test_a_point_that_is_being_computed_is_left_alone(folders, capsys):
    here, there = folders
    with locked(here, "bb") as held:
        assert held
        assert merge.main([str(here), str(there)]) == 0
    assert "1 being computed in RESULTS" in capsys.readouterr().out
    assert not (here / "bb" / "summary.json").exists()


def test_a_copy_that_fails_leaves_no_half_point(folders, monkeypatch, capsys):
    here, there = folders
    monkeypatch.setattr(merge, "write_json", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
    (here / "aa" / "summary.json").write_text(json.dumps({**summary(here / "aa"), "experiments": ["one", "two"]}))
    assert merge.main([str(here), str(there)]) == 1
    assert "No space left" in capsys.readouterr().err
    assert not (here / "cc").exists()
    assert not [path for path in here.iterdir() if path.name.startswith(".cc")]


@pytest.mark.parametrize("name", ["nothing", "here"])
def test_what_is_no_other_results_folder_is_named(folders, name, capsys):
    here, there = folders
    assert merge.main([str(here), str(there.parent / name)]) == 1
    assert ("no points there" if name == "nothing" else "the results folder itself") in capsys.readouterr().err
