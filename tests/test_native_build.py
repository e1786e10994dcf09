"""Building the native library: once, whole or not at all, and a clear line if it cannot be done."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from specdec.models.native import build as building
from specdec.models.native.build import KEPT, NotBuiltError, library_path

COMPILER = next(filter(None, map(shutil.which, building.COMPILERS)), "")
pytestmark = pytest.mark.skipif(not COMPILER, reason="no C++ compiler here")
BUILD = "from pathlib import Path; from specdec.models.native import build; build.SOURCES = Path({!r}); print(build.{})"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A cache of its own, and a source that compiles in no time."""
    (tmp_path / "forward.cpp").write_text('extern "C" int specdec_lanes() { return 1; }\n')
    monkeypatch.setattr(building, "SOURCES", tmp_path)
    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("SPECDEC_CXXFLAGS", raising=False)
    building._outcome.cache_clear()
    yield tmp_path
    building._outcome.cache_clear()


def compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """A compiler that runs some lines of shell where it compiles, and then the real one; each time is counted."""
    path, counted = folder / "compiler", folder / "counted"
    lines = ('case "$*" in *" -E "*) ;; *)', f"echo >> {counted}", script, ";; esac", f'exec {COMPILER} "$@"')
    path.write_text("\n".join(("#!/bin/sh", *lines)))
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    return counted


def again() -> Path:
    building._outcome.cache_clear()
    return library_path()


def other_process(folder: Path, call: str = "library_path()") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILD.format(str(folder), call)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_at_once_build_once_and_say_so_once(folder, monkeypatch):
    counted = compiler(folder, monkeypatch, "sleep 1")
    pair = [other_process(folder) for _ in range(2)]
    paths, messages = zip(*(process.communicate() for process in pair), strict=True)
    assert paths[0] == paths[1] == f"{library_path()}\n"
    assert sorted(messages) == ["", "building the native execution (once, about 20 s)\n"]
    assert counted.read_text() == "\n"


def test_a_killed_build_leaves_no_library_and_the_next_one_removes_what_it_left(folder, monkeypatch):
    compiler(folder, monkeypatch, f"echo $$ > {folder}/started; sleep 60")
    process, cache = other_process(folder), folder / "cache" / "native"
    while not ((folder / "started").exists() and (folder / "started").read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    assert list(cache.glob("*.tmp"))
    process.kill()
    process.communicate()
    os.killpg(int((folder / "started").read_text()), signal.SIGKILL)  # the compiler, which would go on by itself
    assert not list(cache.glob("*.so"))
    compiler(folder, monkeypatch, "")
    path = library_path()
    assert sorted(cache.iterdir()) == sorted([path, cache / ".lock"])


def test_a_compiler_that_hangs_is_ended_with_what_it_started(folder, monkeypatch):
    compiler(folder, monkeypatch, f"sleep 77 & echo $! > {folder}/child; wait")
    monkeypatch.setattr(building, "TIMEOUT_S", 1.0)
    with pytest.raises(NotBuiltError, match=r"compiler took longer than 1\.0 s"):
        library_path()
    child = int((folder / "child").read_text())
    for _ in range(100):
        if not _runs(child):
            return
        time.sleep(0.02)
    pytest.fail("its child goes on")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'x.cpp:1: error: no such thing' >&2; exit 1", "compiler failed: x.cpp:1: error: no such thing"),
        (r"printf '\377\376\n' >&2; exit 1", "compiler failed: \ufffd\ufffd"),
        ("exit 3", "compiler failed: exit status 3"),
        ("exit 0", "the library that .*compiler made cannot be loaded: .*: file too short"),
    ],
)
def test_a_broken_compiler_is_one_line_and_tried_once_per_process(folder, monkeypatch, script, message):
    counted = compiler(folder, monkeypatch, script)
    for _ in range(3):
        with pytest.raises(NotBuiltError, match=message) as refused:
            library_path()
        assert "\n" not in str(refused.value)
    assert counted.read_text() == "\n"
    assert not list((folder / "cache" / "native").glob("*.[st]*"))


def test_a_compiler_that_cannot_be_run_or_found(folder, monkeypatch):
    path = folder / "compiler"
    path.write_bytes(b"\x7fELF")
    path.chmod(0o755)
    for name, message in ((str(path), "cannot be run: "), ("no-such", r"no C\+\+ compiler \(no-such\)")):
        monkeypatch.setenv("CXX", name)
        with pytest.raises(NotBuiltError, match=message):
            again()


def test_a_compiler_may_come_with_arguments(folder, monkeypatch):
    monkeypatch.setenv("CXX", f"env A=1 {COMPILER}")
    assert library_path().exists()


def test_a_compiler_without_openmp_builds_for_one_thread(folder, monkeypatch):
    compiler(folder, monkeypatch, "")
    script = (folder / "compiler").read_text().replace("case", 'case "$*" in *fopenmp*) exit 1;; esac\ncase', 1)
    (folder / "compiler").write_text(script)
    assert library_path().exists()


def test_another_source_flag_or_compiler_is_another_library_and_the_same_is_found_again(folder, monkeypatch):
    paths = [again()]
    (folder / "extra.h").write_text("// more")
    paths.append(again())
    monkeypatch.setenv("SPECDEC_CXXFLAGS", "-DNDEBUG")
    paths.append(again())
    # As on another processor: the compiler defines other macros.
    compiler(folder, monkeypatch, "")
    script = (folder / "compiler").read_text().replace('"$@"', '-D__ANOTHER_EXTENSION__ "$@"')
    (folder / "compiler").write_text(script)
    paths.append(again())
    assert len(set(paths)) == 4
    assert again() == paths[-1]


def test_a_library_that_does_not_load_is_built_again(folder):
    path = library_path()
    path.unlink()
    path.write_text("no library")
    assert again() == path
    assert path.read_bytes().startswith((b"\x7fELF", b"\xcf\xfa\xed\xfe"))


def test_old_libraries_do_not_pile_up(folder):
    cache = folder / "cache" / "native"
    cache.mkdir(parents=True)
    for number in range(KEPT + 5):
        (cache / f"{number}.so").write_text("")
        os.utime(cache / f"{number}.so", (number, number))
    path = library_path()
    kept = {other.name for other in cache.glob("*.so")}
    assert kept == {path.name, *(f"{number}.so" for number in range(6, KEPT + 5))}


def test_a_folder_that_cannot_be_written(folder, monkeypatch):
    (folder / "file").write_text("")
    monkeypatch.setenv("SPECDEC_CACHE", str(folder / "file"))
    with pytest.raises(NotBuiltError, match=r"file/native cannot be written \(Not a directory\): set SPECDEC_CACHE"):
        library_path()
