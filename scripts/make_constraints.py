"""Write constraints.txt: the versions with which the tests have passed, for both install commands of the README.

    python scripts/make_constraints.py    # in the environment whose tests have just passed, to take its versions over

It has what pyproject.toml names, and the few packages beneath that change often. Where a version does not run on the
oldest Python that the project supports, the line says so; a line for that Python (`python_version < ...`) stays as it
is. Edit it by hand, after asking which versions there are: `pip install --dry-run .` in an environment of that Python.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import tomllib
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "constraints.txt"
BENEATH = ("tokenizers", "huggingface-hub", "numpy", "torchmetrics")
HEADER = """\
# The versions with which the tests have passed; both install commands of the README use them (pip install -c).
# Written by `python scripts/make_constraints.py`, which says how to change them; pyproject.toml has the bounds.
"""


def direct() -> set[str]:
    """What pyproject.toml asks for, extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    return {canonicalize_name(Requirement(text).name) for text in wanted}


def oldest_python() -> str:
    """The lower bound of requires-python, as in 3.10."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return str(project["requires-python"]).removeprefix(">=")


def pin(name: str) -> str | None:
    """The line of a package that is installed; a build of its own (+cpu) is the same version elsewhere."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return None
    pythons = SpecifierSet(found.metadata["Requires-Python"] or "")
    line = f"{name}=={found.version.partition('+')[0]}"
    if pythons.contains(oldest_python()):
        return line
    lowest = next(f"3.{minor}" for minor in range(20) if pythons.contains(f"3.{minor}"))
    return f'{line} ; python_version >= "{lowest}"'


def kept() -> list[str]:
    """The lines for older Pythons, which no newer one can write."""
    lines = FILE.read_text().splitlines() if FILE.exists() else []
    return [line for line in lines if "python_version <" in line]


if __name__ == "__main__":
    lines = [line for name in sorted({*direct(), *BENEATH}) if (line := pin(name))] + kept()
    FILE.write_text(HEADER + "".join(f"{line}\n" for line in sorted(lines)))
    print(f"{FILE.name}: {len(lines)} versions")
