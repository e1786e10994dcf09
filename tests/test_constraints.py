"""constraints.txt, which both install commands of the README take, against the bounds in pyproject.toml."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
FAST = ("torch", "transformers", "lightning", "datasets", "wandb", "accelerate", "ruff", "mypy", "pytest", "pandas")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def wanted(*extras: str) -> list[Requirement]:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read pyproject.toml")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    return [Requirement(text) for texts in lists for text in texts]


def pins(python: str) -> dict[str, str]:
    """Version of each package under one Python."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    found: dict[str, str] = {}
    for pin in map(Requirement, lines):
        (specifier,) = pin.specifier
        assert specifier.operator == "==", pin
        assert "+" not in specifier.version, f"{pin}: a build that is not everywhere"
        if pin.marker is None or pin.marker.evaluate({"python_version": python}):
            assert pin.name not in found, f"{pin.name} has two versions under Python {python}"
            found[canonicalize_name(pin.name)] = specifier.version
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_what_the_readme_installs_is_pinned_within_its_bounds(python):
    versions = pins(python)
    for requirement in wanted("dev"):
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} has no line for Python {python} in constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement} leaves out {version}, the tested version"


def test_what_moves_fast_has_an_upper_bound():
    bounds = {requirement.name: str(requirement.specifier) for requirement in wanted("dev")}
    assert [name for name in FAST if "<" not in bounds[name]] == []
