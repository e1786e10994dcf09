"""Native execution built in other ways, each in a process of its own: the same bits, and no report of a sanitizer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_native import SHAPES, _available

pytestmark = [
    pytest.mark.skipif(_available() is not None, reason=f"no native library here: {_available()}"),
    pytest.mark.slow,
]


def bits(**environment: str) -> dict[str, str]:
    """Digests of what `native_bits.py` computes, with some variables set."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("native_bits.py")],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(line.split(": ") for line in done.stdout.splitlines())


def test_fewer_threads_than_asked_for_compute_the_same_bits():
    """OpenMP may give fewer: under a limit, or where it adapts their number to the load."""
    alone = bits(NATIVE_THREADS="1")
    assert alone.keys() >= SHAPES.keys()
    assert bits(NATIVE_THREADS="3", OMP_THREAD_LIMIT="2") == alone
