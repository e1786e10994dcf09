"""Public names of the command line do not change by accident: they are frozen in cli_options.txt."""

from __future__ import annotations

import runpy
from pathlib import Path

HERE = Path(__file__).parent


def test_options_settings_and_defaults_are_those_that_are_written_down():
    found = runpy.run_path(str(HERE.parent / "scripts" / "make_docs.py"))["cli_options"]().splitlines()
    frozen = (HERE / "cli_options.txt").read_text().splitlines()
    gone, new = sorted(set(frozen) - set(found)), sorted(set(found) - set(frozen))
    assert not gone, f"options or defaults that users rely on are gone: {gone}; meant so? python scripts/make_docs.py"
    assert not new, f"new options: {new}; write them down with python scripts/make_docs.py"
    assert len(frozen) == len(set(frozen)) > 100
