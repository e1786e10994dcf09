"""The commands of experiments/trees, at small sizes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

STUDY = Path(__file__).parent.parent / "experiments" / "trees"


def printed(script: str, *arguments: str) -> str:
    command = [sys.executable, str(STUDY / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.nightly
def test_every_verifier_gives_the_targets_greedy_tokens_on_every_tree():
    """Two built-in prompts per verifier and tree; alignments and batch sizes take turns."""
    rows = re.findall(
        r"^\| (\w+) \| (\d+)/(\d+) \| (\d+) \| (?:\d\d) \| 5 \| 3 \|$", printed("greedy.py", "--first", "20"), re.M
    )
    assert [row[0] for row in rows] == ["chain", "paths", "delayed", "gumbel", "beam", "confidence", "static"]
    assert {row[1:3] for row in rows} == {("20", "20")}
    nodes = {row[0]: int(row[3]) for row in rows}
    assert nodes["beam"] > 2 * nodes["chain"]


@pytest.mark.nightly
def test_the_study_can_be_rehearsed(tmp_path):
    text = printed("study.py", "--rehearse", "--results", str(tmp_path))
    assert text.count("## Tokens per second") == 2
    assert "Traversal > SpecTr" in text
