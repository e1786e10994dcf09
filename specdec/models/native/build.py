"""Building the library: with the machine's compiler, when first used, into the user's cache.

A library is named by the hash of all that decides its instructions: sources, flags, and the macros that the compiler
defines under these flags, which state its version and every extension of the processor's instruction set that it may
use. So another processor (in a home folder that machines share too), another compiler or a change builds another one.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from filelock import FileLock

from specdec.assets import cache_folder

SOURCES = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared")
THREADS = "-fopenmp"
"""Left out where the compiler does not know it: the library then runs in one thread."""
MACROS = ("-dM", "-E", "-x", "c++", os.devnull)
TIMEOUT_S = 300
KEPT = 16
"""Libraries that stay in the cache; older ones are removed when another is built."""


class NotBuiltError(Exception):
    """There is no library; the message is the reason."""


def library_path() -> Path:
    """The library of this machine, built if it is not in the cache yet.

    Raises:
        NotBuiltError: there is no compiler, it failed, or what it made cannot be loaded. A process tries once.
    """
    outcome = _outcome()
    if isinstance(outcome, str):
        raise NotBuiltError(outcome)
    return outcome


@cache
def _outcome() -> Path | str:
    try:
        return _found_or_built()
    except NotBuiltError as error:
        return str(error)


def _found_or_built() -> Path:
    compiler = _compiler()
    flags = (*FLAGS, *_processor_flags(), *shlex.split(os.environ.get("SPECDEC_CXXFLAGS", "")))
    folder = cache_folder() / "native"
    path = folder / f"{_key(compiler, flags)}.so"
    if _load_error(path) is None:
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if _load_error(path) is not None:
                print("building the native execution (once, about 20 s)", file=sys.stderr, flush=True)
                _clean(folder)
                _build([*compiler, *flags], path)
    except OSError as error:
        raise NotBuiltError(f"{folder} cannot be written ({error.strerror or error}): set SPECDEC_CACHE") from error
    return path


def _compiler() -> list[str]:
    """The compiler's path and first arguments: ``$CXX``, or the first of the usual ones."""
    wanted = [shlex.split(own)] if (own := os.environ.get("CXX", "").strip()) else [[name] for name in COMPILERS]
    for name, *arguments in wanted:
        if found := shutil.which(name):
            return [found, *arguments]
    raise NotBuiltError(f"no C++ compiler ({', '.join(words[0] for words in wanted)}): install g++ or clang++")


def _processor_flags() -> tuple[str, ...]:
    return ("-mcpu=native",) if platform.machine() in ("aarch64", "arm64") else ("-march=native",)


def _key(compiler: list[str], flags: tuple[str, ...]) -> str:
    sources = [path.read_bytes() for path in sorted(SOURCES.glob("*.[hc]*")) if path.suffix in (".h", ".cpp")]
    macros = _run([*compiler, *flags, *MACROS])
    parts = [*sources, " ".join(flags).encode(), macros.encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _build(command: list[str], path: Path) -> None:
    """Compile into a temporary file and rename it, so that a killed build leaves no broken library."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    target = [str(SOURCES / "forward.cpp"), "-o", temporary]
    try:
        try:
            _run([*command, *target, THREADS])
        except NotBuiltError:
            if _knows_threads(command):
                raise
            _run([*command, *target])
        if error := _load_error(Path(temporary)):
            raise NotBuiltError(f"the library that {command[0]} made cannot be loaded: {error}")
        os.chmod(temporary, 0o755)  # mkstemp lets only its owner read it, and a cache may be shared
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _knows_threads(command: list[str]) -> bool:
    try:
        _run([*command, THREADS, "-include", "omp.h", *MACROS])
    except NotBuiltError:
        return False
    return True


def _load_error(path: Path) -> str | None:
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        return str(error)
    return None


def _clean(folder: Path) -> None:
    """Remove what killed builds left, and the oldest libraries; those in use stay loaded."""
    libraries = sorted(folder.glob("*.so"), key=lambda path: path.stat().st_mtime)
    for path in (*folder.glob("*.tmp"), *libraries[: 1 - KEPT]):
        path.unlink(missing_ok=True)


def _run(command: list[str]) -> str:
    """What a command prints; a command past its time is ended with all processes that it started."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        raise NotBuiltError(f"{command[0]} cannot be run: {error.strerror}") from error
    try:
        output, errors = (text.decode(errors="replace") for text in process.communicate(timeout=TIMEOUT_S))
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        raise NotBuiltError(f"{command[0]} took longer than {TIMEOUT_S} s") from error
    if process.returncode:
        lines = [line.strip() for line in errors.splitlines() if line.strip()] or [f"exit status {process.returncode}"]
        first = next((line for line in lines if re.search("error|failed", line)), lines[0])
        raise NotBuiltError(f"{command[0]} failed: {first[:300]}")
    return output
