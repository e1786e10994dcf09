"""repeat=N: points taken in turns, medians and intervals, and what is said of ranks and headlines within noise."""

from __future__ import annotations

import pandas as pd
import pytest
from conftest import last_document
from test_cli import SMALL

from specdec import analysis
from specdec.cli.table import notes
from specdec.report.content import ReportContent, collect
from specdec.report.page import tiles
from specdec.report.turns import merge_turns, over_turns


def turn(number: int, speed: float, **more):
    return {
        "label": "r",
        "hash": f"h{number}b{more.get('batch', 4)}",
        "status": "done",
        "turn": number,
        "batch": 4,
        "num_prompts": 9,
        "tokens_per_s": speed,
        "speedup_vs_ar": speed / 100,
        "num_exact": 9,
        "num_failures": 0,
        **more,
    }


def test_turns_of_a_point_become_one_with_medians_and_the_worst_verdict():
    points = [turn(0, 90.0), turn(1, 130.0, num_exact=8, num_failures=1), turn(2, 100.0), turn(0, 7.0, batch=8)]
    both = merge_turns(points)
    assert [(point["batch"], point["tokens_per_s"]) for point in both] == [(4, 100.0), (8, 7.0)]
    assert (both[0]["num_exact"], both[0]["num_failures"], both[0]["num_turns"]) == (8, 1, 3)
    assert over_turns(both[0], points) == {"tokens_per_s": (90.0, 130.0), "speedup_vs_ar": (0.9, 1.3)}
    failed = [turn(0, 90.0), {**turn(1, 0.0), "status": "failed"}]
    assert len(merge_turns(failed)) == 2, "a failed turn is not a slow one"


@pytest.mark.slow
def test_a_sweep_takes_turns_and_its_points_are_one_row_each(run, tmp_path):
    code, out, err = run(*SMALL, "scheduler=plain,static", "repeat=2", "-m")
    assert code == 0, err
    places = [out.index(text) for text in ("turn 1 of 2", "[1]", "[2]", "turn 2 of 2")]
    assert places == sorted(places)
    assert out.count("\n[1]") == out.count("\n[2]") == 2
    points = last_document(out)["points"]
    assert [(point["scheduler"], point["num_turns"]) for point in points] == [("plain", 2), ("static", 2)]
    low, high = points[1]["interval"]["speedup_vs_ar"]
    frame = analysis.load(tmp_path / "results").query("scheduler == 'static'")
    assert sorted(frame["turn"]) == [0, 1]
    assert sorted(frame["speedup_vs_ar"]) == [low, high]
    assert points[1]["tokens_per_s"] == frame["tokens_per_s"].median()
    assert frame["method"].nunique() == 1
    content = collect([tmp_path / "results"])
    assert {point["scheduler"]: point["num_turns"] for point in content.points} == {"plain": 2, "static": 2}
    (static,) = (point for point in content.points if point["scheduler"] == "static")
    assert content.interval(static, "speedup_vs_ar") == (low, high)


@pytest.mark.parametrize("value", ["0", "often"])
def test_a_number_of_turns_is_from_one(run, value):
    code, _, err = run(*SMALL, f"repeat={value}")
    assert code == 1
    assert err == f"specdec: repeat={value}: give the number of turns, from 1\n"


def test_ranks_within_noise_are_said_to_be_such():
    def outcome(scheduler: str, speed: float, low: float, high: float):
        return {"scheduler": scheduler, "batch": 4, "tokens_per_s": speed, "interval.tokens_per_s": [low, high]}

    said = notes([outcome("a", 100, 90, 110), outcome("b", 95, 85, 99), outcome("c", 50, 45, 55)])
    assert said[-1] == "batch 4: the order by speed is within noise (intervals overlap) for a and b"
    assert not [note for note in notes([outcome("a", 100, 90, 110), outcome("c", 50, 45, 55)]) if "noise" in note]


@pytest.mark.parametrize(("low", "value"), [(0.94, "none"), (1.05, "1.25x")])
def test_a_speed_up_is_a_headline_only_if_its_interval_excludes_one(low, value):
    point = turn(0, 125.0, drafter="model", pair="p", method="m", batch=4)
    found = {"r/h0b4": {"speedup_vs_ar": (low, 1.64), "tokens_per_s": (100.0, 150.0)}}
    content = ReportContent([point], [], pd.DataFrame(), pd.DataFrame(), found)
    assert [tile.value for tile in tiles(content)][1] == value
