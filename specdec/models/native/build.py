"""Building the library: with the machine's compiler, when first used, into the user's cache.

A library is named by the hash of all that decides its instructions: sources, flags, compiler and processor. On another
processor, or after a change, another one is built, so none is loaded where it does not belong.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
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
TIMEOUT_S = 300


class NotBuiltError(Exception):
    """There is no library; the message is the reason."""


@cache
def library_path() -> Path:
    """The library of this machine, built if it is not in the cache yet.

    Raises:
        NotBuiltError: there is no compiler, or it failed.
    """
    compiler = _compiler()
    flags = (*FLAGS, *_processor_flags(), *os.environ.get("SPECDEC_CXXFLAGS", "").split())
    folder = cache_folder() / "native"
    path = folder / f"{_key(compiler, flags)}.so"
    if path.exists():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not path.exists():
                print("building the native execution (once, about 20 s)", file=sys.stderr, flush=True)
                _build(compiler, flags, path)
    except OSError as error:
        raise NotBuiltError(f"{folder} cannot be written: {error.strerror or error}") from error
    return path


def _compiler() -> str:
    """The path of the compiler: ``$CXX``, or the first of the usual ones."""
    wanted = [name] if (name := os.environ.get("CXX")) else COMPILERS
    for name in wanted:
        if found := shutil.which(name):
            return found
    raise NotBuiltError(f"no C++ compiler ({', '.join(wanted)}): install g++ or clang++")


def _processor_flags() -> tuple[str, ...]:
    return ("-mcpu=native",) if platform.machine() in ("aarch64", "arm64") else ("-march=native",)


def _key(compiler: str, flags: tuple[str, ...]) -> str:
    sources = [path.read_bytes() for path in sorted(SOURCES.glob("*.[hc]*")) if path.suffix in (".h", ".cpp")]
    version = _run([compiler, "--version"])
    parts = [*sources, *map(str.encode, (version, " ".join(flags), _processor()))]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _processor() -> str:
    """What `native` means on this machine: the processor's model and what it can do."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    lines = re.findall(r"^(?:model name|flags|Features|CPU part)\s*:.*$", text, re.MULTILINE)
    return "\n".join(dict.fromkeys(lines))


def _build(compiler: str, flags: tuple[str, ...], path: Path) -> None:
    """Compile into a temporary file and rename it, so that a killed build leaves no broken library."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    try:
        command = [compiler, *flags, str(SOURCES / "forward.cpp"), "-o", temporary]
        try:
            _run([*command, THREADS])
        except NotBuiltError:
            _run(command)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotBuiltError(f"{command[0]} failed: {error}") from error
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["?"]
        raise NotBuiltError(f"{command[0]} failed: {errors[0].strip()}")
    return done.stdout
