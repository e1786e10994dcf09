"""Answer files of Spec-Bench: what its speed script reads of them is what our summary says."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

import pytest
from conftest import last_document
from test_cli import SMALL

from specdec.report.__main__ import main


def read_as_the_script_does(path: Path) -> tuple[list[float], list[int], list[tuple[list[str], float]]]:
    """Speeds of the method, its accepted lengths, and what the script takes of a baseline: texts and seconds."""
    choices = [json.loads(line)["choices"][0] for line in path.read_text().splitlines()]
    speeds = [sum(choice["new_tokens"]) / sum(choice["wall_time"]) for choice in choices]
    lengths = [length for choice in choices for length in choice["accept_lengths"]]
    return speeds, lengths, [(choice["turns"], sum(choice["wall_time"])) for choice in choices]


@pytest.mark.slow
def test_the_figures_of_the_answer_files_are_those_of_the_summary(run, tmp_path):
    data = tmp_path / "two_turns.jsonl"
    lines = [{"question_id": n, "category": "writing", "turns": [f"Tell {n}.", "And more?"]} for n in (7, 9)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = ["data=jsonl", f"data.path={data}", "data.turns=conversation", "data.num_prompts=null"]
    code, out, err = run(*SMALL, *asked, "batch=1", "scheduler=plain,eqspec", "-m")
    assert code == 0, err
    points = {point["scheduler"]: point for point in last_document(out)["points"]}
    assert main([str(tmp_path / "results"), "--format", "answers", "--out", str(tmp_path)]) == 0
    files = {name: next((tmp_path / "answers").glob(f"*-{name}-b1-*.jsonl")) for name in points}
    speeds, lengths, _ = read_as_the_script_does(files["eqspec"])
    assert len(speeds) == 2, "a line per question, not per turn"
    assert mean(lengths) == pytest.approx(points["eqspec"]["mean_acceptance_length"])
    assert sum(lengths) == points["eqspec"]["num_output_tokens"]
    _, _, baseline = read_as_the_script_does(files["plain"])
    assert [len(texts) for texts, _ in baseline] == [2, 2]
    assert sum(seconds for _, seconds in baseline) == pytest.approx(points["plain"]["wall_s"]), (
        "alone, rows share nothing"
    )
    first = json.loads(files["eqspec"].read_text().splitlines()[0])
    assert first.keys() == {"question_id", "category", "answer_id", "model_id", "choices", "tstamp"}
    assert (first["question_id"], first["category"]) == (7, "writing")
    assert [len(first["choices"][0][key]) for key in ("turns", "new_tokens", "decoding_steps", "wall_time")] == [2] * 4
