"""The kit as a plug-in author calls it: its command, its assertion and its pytest plug-in."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from specdec.conformance import ConformanceError, conformance, examine
from specdec.conformance.__main__ import main
from specdec.errors import ConfigError

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_command_prints_the_table_and_exits_by_it(capsys):
    assert main(["scheduler=static", "--scale", "0.1"]) == 0
    assert "kept" in capsys.readouterr().out
    assert main(["scheduler=lockstep", "--scale", "0.1", "--no-shrink"]) == 1
    out = capsys.readouterr().out
    assert "BROKEN" in out
    assert "smallest case found" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["alignment=inplase"], "unknown alignment 'inplase'.*did you mean 'inplace'"),
        (["logger=csv"], "write GROUP=NAME"),
        (["alignment=bsp", "alignment.holes=1"], "unknown setting of alignment=bsp 'holes'"),
        (["alignment.count_holes=false"], "alignment=NAME is not"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(capsys, arguments, message):
    import re

    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert re.search(message, err), err
    assert len(err.strip().splitlines()) == 1


def test_missing_hypothesis_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ConfigError, match="pip install hypothesis"):
        examine("scheduler", "static")


def test_help_answers_at_once():
    started = time.perf_counter()
    command = [sys.executable, "-X", "importtime", "-m", "specdec.conformance", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "alignment=NAME" in result.stdout
    assert " torch\n" not in result.stderr
    assert time.perf_counter() - started < 20, "a second on an idle machine"


@pytest.mark.nightly
def test_assertion_for_plug_in_authors():
    conformance(scheduler="static", scale=0.1)
    with pytest.raises(ConformanceError, match="scheduler=lockstep breaks progress") as failure:
        conformance(scheduler="lockstep", scale=0.1)
    assert "smallest case found" in str(failure.value)


@pytest.mark.slow
def test_pytest_plugin(tmp_path, capsys):
    """Option and fixture, in a project of another author; in this process, where torch is loaded."""
    (tmp_path / "test_mine.py").write_text(
        "def test_it(conformance):\n    conformance(scheduler='static', scale=0.05)\n"
    )
    command = [*("-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-c", "/dev/null", "-p", "no:xdist")]
    if not _is_installed():
        command += ["-p", "specdec.conformance.pytest_plugin"]
    command += [
        "--conformance",
        "scheduler=exspec",
        "--conformance",
        "scheduler=lockstep",
        "--conformance-scale",
        "0.05",
    ]
    command.append(str(tmp_path))
    assert pytest.main(command) == 1
    said = capsys.readouterr().out
    assert "2 passed" in said or "1 failed, 2 passed" in said, said
    assert "scheduler=lockstep breaks progress" in said


def _is_installed() -> bool:
    from importlib.metadata import entry_points

    return any(point.value == "specdec.conformance.pytest_plugin" for point in entry_points(group="pytest11"))
