"""The notebooks: kept with their outputs, and each runs from its first cell to its last."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import nbformat
import pytest
from hydra import compose, initialize_config_module
from nbclient import NotebookClient

from specdec.config.resolve import resolve

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def test_there_are_five():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_with_the_outputs_of_a_whole_run(path):
    """`python scripts/run_notebooks.py` writes them."""
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert len(outputs) >= 2
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert not re.search(r"built-in method|/(home|tmp|work)/|\x1b", str(outputs)), "an object, a path, a colour"
    assert "parameters" in code[0].metadata.get("tags", []), "sizes are set in one cell at the top"


def code_of(path: Path) -> tuple[str, list[str]]:
    """The Python of a notebook, and the words of each `specdec` command that its shell lines run."""
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    values = {}
    exec(cells[0], values)
    shell = re.compile(r"^!((?:.*\\\n)*.*)$", re.MULTILINE)
    lines = [line.replace("\\\n", " ") for cell in cells for line in shell.findall(cell)]
    commands = [re.search(r"-m specdec ([^|]*)", line) for line in lines]
    words = [re.sub(r"\{(\w+)\}", lambda name: str(values[name[1]]), found[1]) for found in commands if found]
    return "\n".join(shell.sub("pass", cell) for cell in cells), words


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_asks_for_nothing_that_is_not_there(path):
    """Its imports and the settings of its commands, without running it."""
    code, commands = code_of(path)
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name) or importlib.util.find_spec(f"{node.module}.{name.name}")
    for words in commands:
        overrides = [word.partition(",")[0] for word in words.split() if word != "-m"]
        with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
            resolve(compose(config_name="config", overrides=overrides))
    assert commands or "compose(" in code or "specdec.audit" in path.read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all of them: points that two notebooks share are computed once."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.nightly
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, folder):
    book = nbformat.read(path, as_version=4)
    NotebookClient(book, timeout=400, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    said = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(str(output.get("text", "")) for output in said)
    assert "Traceback" not in text
    assert "specdec:" not in text, "a command failed with a message of one line"
    assert any("text/html" in output.get("data", {}) or "text/markdown" in output.get("data", {}) for output in said)
