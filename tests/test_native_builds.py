"""Native execution built in other ways, each in a process of its own: the same bits, and no report of a sanitizer."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from conftest import no_library
from native_bits import KINDS
from native_models import SHAPES

pytestmark = pytest.mark.skipif(no_library() is not None, reason=f"no native library here: {no_library()}")
TESTS = Path(__file__).parent
AVX2 = "-march=x86-64-v3"
needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX2 is of x86-64")


def python(*arguments: str, **environment: str) -> str:
    """What a process prints, with some variables set."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@cache
def bits(**environment: str) -> dict[str, str]:
    """Digests of what `native_bits.py` computes."""
    lines = python(str(TESTS / "native_bits.py"), **environment).splitlines()
    digests = dict(line.split(": ") for line in lines)
    assert digests.keys() == {"lanes", *SHAPES, *KINDS}
    return digests


@pytest.mark.nightly
def test_fewer_threads_than_asked_for_compute_the_same_bits():
    """OpenMP may give fewer: under a limit, or where it adapts their number to the load."""
    assert bits(NATIVE_THREADS="3", OMP_THREAD_LIMIT="2") == bits()


@pytest.mark.nightly
@pytest.mark.parametrize("environment", [{}, {"CXX": "clang++"}], ids=["default", "clang"])
def test_bits_do_not_depend_on_the_compiler_its_optimiser_or_fresh_memory(environment):
    if "CXX" in environment and shutil.which(environment["CXX"]) is None:
        pytest.skip("no clang++ here")
    assert bits(**environment, SPECDEC_CXXFLAGS="-O1 -DSPECDEC_POISON") == bits()


@pytest.mark.nightly
@needs_x86
def test_a_processor_without_avx512_passes_the_same_tests():
    python("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_native.py", SPECDEC_CXXFLAGS=AVX2)
    assert bits(SPECDEC_CXXFLAGS=AVX2)["lanes"] == "8"


@pytest.mark.nightly
def test_no_sanitizer_reports_anything():
    compiler = os.environ.get("CXX", "g++")
    names = ("libasan.so", "libubsan.so")
    found = [
        subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in names
        if shutil.which(compiler)
    ]
    if not found or not all(map(os.path.isabs, found)):
        pytest.skip(f"{compiler} has no {' or '.join(names)}")
    files = [f"tests/{name}.py" for name in ("test_native", "test_native_calls")]
    python(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", *files),
        CXX=compiler,
        SPECDEC_CXXFLAGS="-O1 -g -DSPECDEC_POISON -fsanitize=address,undefined -fno-sanitize-recover=all",
        LD_PRELOAD=" ".join(found),
        ASAN_OPTIONS="detect_leaks=0",
    )
