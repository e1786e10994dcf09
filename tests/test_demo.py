"""What a newcomer runs first: the drop-in script, the demo, and an import that costs nothing."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import specdec

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_importing_the_package_imports_no_torch():
    script = "import sys, specdec; print('torch' in sys.modules, specdec.Engine.__module__)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.split() == ["False", "specdec.engine.api"]
    with pytest.raises(AttributeError, match="no attribute 'genrate'"):
        specdec.genrate  # noqa: B018


@pytest.mark.slow
@pytest.mark.parametrize("room", ["alignment", "drafters", "verifiers", "schedulers", "draft_lengths", "trees"])
def test_what_a_plugin_imports_imports_no_torch(room):
    """A plug-in is imported when it is announced, and `--help` must answer at once."""
    more = ", specdec.drafters.context" if room == "drafters" else ""
    script = f"import sys, specdec.{room}.base{more}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "False"


@pytest.mark.slow
def test_the_drop_in_script(capsys):
    scope = runpy.run_path(str(ROOT / "experiments" / "drop_in.py"))
    theirs = scope["target"].generate(**scope["inputs"], max_new_tokens=40)
    width = scope["inputs"]["input_ids"].shape[1]
    for ids, mask, output in zip(*scope["inputs"].values(), scope["outputs"], strict=True):
        row = ids[mask.bool()][None]
        alone = scope["target"].generate(row, attention_mask=torch.ones_like(row), max_new_tokens=40)
        assert torch.equal(alone[0, row.shape[1] :], output[width:])
    assert theirs.shape == scope["outputs"].shape
    assert capsys.readouterr().out.count("---") == 3


def test_the_demo_without_a_terminal(capsys):
    from specdec import demo

    assert demo.main(["import os\n", "class A:", "--tokens", "12"]) == 0
    out = capsys.readouterr().out
    assert "--- 1 ---\nclass A:" in out
    assert "the same tokens" in out
    assert demo.main(["x", "--temperature", "-1"]) == 1
    assert capsys.readouterr().err.startswith("error: temperature=-1")
    started = (
        "import sys; sys.argv[1:] = ['--help']; from specdec import demo\n"
        "try: demo.main()\n"
        "finally: print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", started], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "--temperature" in result.stdout
    assert result.stdout.split()[-1] == "False"
