"""The last line of stdout, of a run and of a sweep."""

from __future__ import annotations

import json

from specdec.cli.document import last_line

POINT = {"status": "done", "batch": 4, "tokens_per_s": 123.456, "interval": {"tokens_per_s": [120.0049, 130.25]}}
POINT |= {"num_exact": 12345, "acceptance_rate": None, "overrides": ["batch=4"], "path": "results/a", "noise": 0.5}


def test_a_run_has_its_main_figures_with_four_digits():
    line = last_line([POINT], [])
    assert "\n" not in line
    assert json.loads(line) == {
        "status": "done",
        "batch": 4,
        "tokens_per_s": 123.5,
        "interval": {"tokens_per_s": [120.0, 130.2]},
        "num_exact": 12345,
        "path": "results/a",
    }
    failed = json.loads(last_line([POINT | {"status": "failed", "error": "no"}], []))
    assert (failed["overrides"], failed["error"]) == (["batch=4"], "no")


def test_a_sweep_names_the_file_with_every_figure(tmp_path):
    line = json.loads(last_line([POINT, POINT], [tmp_path]))
    assert [point["tokens_per_s"] for point in line["points"]] == [123.5, 123.5]
    assert json.loads((tmp_path / "summary.json").read_text()) == {"points": [POINT, POINT]}
    assert line["document"] == str(tmp_path / "summary.json")
