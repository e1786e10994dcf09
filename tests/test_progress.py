"""What a run says while it works, without a terminal."""

from __future__ import annotations

import time

import pytest

from specdec.core.clock import Clock
from specdec.core.round import Round
from specdec.core.sequence import Sequence
from specdec.run import progress
from specdec.run.progress import RoundProgress, reporting


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL_S", 0.02)


def waited_for(capsys, text: str) -> str:
    said = ""
    for _ in range(200):
        said += capsys.readouterr().err
        if text in said:
            return said
        time.sleep(0.02)
    raise AssertionError(f"{text!r} is not in {said!r}")


def a_round(num_finished: int) -> Round:
    rows = [Sequence(b, [1], 4) for b in range(2)]
    outcome = Round(rows, [2, 2], [1, 0], [[5, 6], [7]], True)
    outcome.finished = rows[:num_finished]
    return outcome


def test_lines_name_the_stage_the_rows_the_speed_and_the_time_left(capsys):
    clock = Clock()
    with clock.stage("verify"):
        time.sleep(0.01)
    with RoundProgress("continuous batch 2", 3, enabled=True) as bar:
        assert "reading prompts" in waited_for(capsys, "continuous batch 2: 0 of 3 rows")
        bar.observe(a_round(0), clock)
        assert "left" not in waited_for(capsys, "tok/s, acceptance 0.25").rsplit("acceptance", 1)[1].split("\n")[0]
        bar.observe(a_round(1), clock)
        waited_for(capsys, "1 of 3 rows")
        waited_for(capsys, " s left")
    capsys.readouterr()
    time.sleep(0.1)
    assert capsys.readouterr().err == "", "lines after the end"


def test_nothing_is_said_where_progress_is_off_and_the_thread_ends_with_an_error(capsys):
    with RoundProgress("quiet", 3, enabled=False):
        time.sleep(0.1)
    with pytest.raises(ValueError, match="own"), reporting(lambda seconds: "loading"):
        raise ValueError("own")
    capsys.readouterr()
    time.sleep(0.1)
    assert capsys.readouterr().err == ""
