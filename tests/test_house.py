"""The rooms of `specdec/` import in one direction, and nothing is loose at the top but the public faces."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "specdec"

FACES = {"__init__", "__main__", "errors", "registry", "analysis", "demo", "merge"}
"""The modules at the top of the package."""

ORDER = (
    ("errors", "assets", "conf"),
    ("registry",),
    ("core",),
    ("config",),
    ("schedulers", "verifiers", "draft_lengths", "analysis"),
    ("models", "report", "trees", "budgets"),
    ("alignment", "equivalence"),
    ("selectors",),
    ("drafters",),
    ("heads",),
    ("engine", "adaptation"),
    ("run", "conformance", "audit", "lm_eval"),
    ("training", "bench"),
    ("cli",),
    ("demo", "merge", "__init__", "__main__"),
)
"""A room imports only rooms of earlier lines: so there are no cycles between rooms."""

ONLY = {
    "analysis": {"errors", "core", "config"},
    "report": {"errors", "assets", "registry", "core", "config", "analysis"},
}
"""Results are read without what makes them: these two stand beside the order, and import these rooms at most."""


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports_of(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements at any depth, but those for the type checker alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        yield from imports_of(child)


@cache
def arrows() -> frozenset[tuple[str, str]]:
    """(importing module, imported module), of all imports between rooms."""
    paths = {module_of(path): path for path in PACKAGE.rglob("*.py")}
    found = set()
    for module, path in paths.items():
        for statement in imports_of(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(statement, ast.Import):
                targets = [alias.name for alias in statement.names]
            else:
                assert statement.level == 0, f"{module}: relative import"
                within = [f"{statement.module}.{alias.name}" for alias in statement.names]
                targets = [target if target in paths else str(statement.module) for target in within]
            found |= {(module, target) for target in targets if target.partition(".")[0] == "specdec"}
    return frozenset((module, target) for module, target in found if room_of(module) != room_of(target))


def is_allowed(room: str, other: str) -> bool:
    level = {name: number for number, names in enumerate(ORDER) for name in names}
    return level[other] < level[room] and (room not in ONLY or other in ONLY[room])


def test_nothing_is_loose_at_the_top():
    assert {path.stem for path in PACKAGE.glob("*.py")} == FACES


def test_every_room_has_a_place_in_the_order_and_a_line_of_purpose():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms | FACES == {name for names in ORDER for name in names}
    for room in sorted(rooms):
        assert ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))), room


def test_rooms_import_in_one_direction():
    against = {arrow for arrow in arrows() if not is_allowed(room_of(arrow[0]), room_of(arrow[1]))}
    assert against == set(), "imports against the order of the rooms"


def test_rooms_form_no_cycle():
    """Said apart from the order, which may be changed."""
    graph: dict[str, set[str]] = {}
    for module, target in arrows():
        graph.setdefault(room_of(module), set()).add(room_of(target))
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_the_stable_faces_and_what_help_needs_import_no_torch():
    rooms = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    contracts = ("alignment", "drafters", "verifiers", "schedulers", "draft_lengths", "trees", "selectors")
    light = [*rooms, *(f"{name}.base" for name in contracts), "errors", "registry", "analysis", "core.sequence"]
    light += ["cli.run", "cli.help", "cli.train", "config.schema", "audit.__main__"]
    lines = ["import sys", *(f"import specdec.{name}" for name in light)]
    lines += [
        "from specdec.alignment.base import Alignment, Clock, Kept",
        "from specdec.drafters.base import Draft, Drafter, Sequence",
        "from specdec.cli import main",
        "assert 'torch' not in sys.modules",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=PACKAGE.parent, check=True)


def undocumented_methods() -> Iterator[str]:
    """Public methods and properties that neither their class nor a base explains."""
    names = [module.name for module in pkgutil.walk_packages([str(PACKAGE)], "specdec.")]
    if find_spec("lm_eval") is None:  # a package that CI does not install
        names.remove("specdec.lm_eval.model")
    for module in (import_module(name) for name in names if not name.endswith("__main__")):
        for cls in vars(module).values():
            if not inspect.isclass(cls) or cls.__module__ != module.__name__ or cls.__name__.startswith("_"):
                continue
            for name in vars(cls):
                part = inspect.getattr_static(cls, name)
                is_method = inspect.isroutine(part) or isinstance(part, property)
                if is_method and not name.startswith("_") and not inspect.getdoc(getattr(cls, name)):
                    yield f"{cls.__qualname__}.{name}"


def test_public_methods_are_explained_by_their_class_or_a_base():
    assert list(undocumented_methods()) == []


def test_names_that_are_handed_on_are_the_same_objects():
    from specdec import Engine, engine, generate, stream
    from specdec.alignment import base
    from specdec.models.causal_lm import CausalLM

    assert base.CausalLM is CausalLM
    assert (engine.Engine, engine.generate, engine.stream) == (Engine, generate, stream)
