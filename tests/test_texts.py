"""show_text=true: the outputs of the first rows, on the console."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import last_document

from specdec.core.files import read_lines
from specdec.run.texts import ROWS, print_texts

SMALL = ["data.num_prompts=5", "max_new_tokens=8", "batch=2", "baseline=false"]


@pytest.mark.slow
def test_the_first_rows_are_shown_also_of_a_finished_point(run, tmp_path):
    code, plain, err = run(*SMALL, results=tmp_path)
    assert code == 0, err
    _, shown, _ = run(*SMALL, "show_text=true", results=tmp_path)
    first, second = (last_document(out) for out in (plain, shown))
    assert second["skipped"]
    assert first["hash"] == second["hash"], "what is shown does not identify a run"
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    _, shown_there, _ = run(*SMALL, "show_text=true", results=moved)
    third = last_document(shown_there)
    assert (third["path"], third["skipped"]) == (str(moved / first["hash"]), True), "a folder may have been moved"
    first["path"] = third["path"]
    rows = list(read_lines(Path(first["path"]) / "samples.jsonl"))
    for place, row in enumerate(rows):
        title = f"question {row['question_id']} ({row['category']}): {len(row['output_ids'])} tokens"
        assert (title in shown) == (title in shown_there) == (place < ROWS)
        assert title not in plain
    assert all(line in shown for line in rows[0]["text"].splitlines())


def test_a_terminal_is_not_driven_by_outputs(tmp_path, capsys):
    row = {"question_id": 1, "category": "[red]x", "output_ids": [1], "text": "a\x1b[31mb[bold]\x07" + "c" * 1000}
    (tmp_path / "samples.jsonl").write_text(json.dumps(row) + "\n")
    print_texts(tmp_path)
    out = capsys.readouterr().out
    assert r"a\x1b[31mb[bold]\x07" in out
    assert "[red]x" in out
    assert out.rstrip().endswith("ccc ...")
