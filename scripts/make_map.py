"""Write the map in docs/architecture.md: the packages of `specdec/`, and which imports which, from the sources.

    python scripts/make_map.py

Packages, their order and their imports are those that tests/test_house.py checks; what a package is for is the first
line of its docstring.
"""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- map: written by scripts/make_map.py -->\n", "<!-- end of the map -->\n"
ENTRIES = {"__init__", "__main__", "demo", "merge"}  # import other packages, and are imported by none


def imports() -> dict[str, set[str]]:
    """Which packages each package imports, without those that it also reaches by way of another one."""
    house = runpy.run_path(str(ROOT / "tests" / "test_house.py"))
    graph: dict[str, set[str]] = {room: set() for rooms in house["ORDER"] for room in rooms if room not in ENTRIES}
    for module, imported in house["arrows"]():
        if (room := house["room_of"](module)) not in ENTRIES:
            graph[room].add(house["room_of"](imported))

    def reached(room: str) -> set[str]:
        return graph[room].union(*map(reached, graph[room]))

    return {room: direct - set().union(*map(reached, direct)) for room, direct in graph.items()}


def picture() -> str:
    """The imports as a Mermaid graph."""
    lines = [f"  {room} --> {imported}" for room, found in reversed(imports().items()) for imported in sorted(found)]
    return "```mermaid\ngraph TD\n" + "\n".join(lines) + "\n```\n"


def table() -> str:
    """Every package with its purpose, from the lowest to the highest."""
    lines = ["| package | purpose |", "|---|---|"]
    for room in imports():
        folder = ROOT / "specdec" / room
        source = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        purpose = (ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        lines.append(f"| `{room}{'/' if folder.is_dir() else '.py'}` | {purpose.replace('``', '`')} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """docs/architecture.md with the map as it must be."""
    text = PAGE.read_text(encoding="utf-8")
    drawn = f"{BEGIN}{picture()}\n{table()}{END}"
    return re.sub(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: drawn, text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
