"""The notebooks: without outputs in the repository, and each runs from its first cell to its last."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def test_there_are_four():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert not [cell.source for cell in code if cell.outputs or cell.execution_count is not None]
    assert "parameters" in code[0].metadata.get("tags", []), "sizes are set in one cell at the top"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all of them: points that two notebooks share are computed once."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, folder):
    book = nbformat.read(path, as_version=4)
    NotebookClient(book, timeout=400, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    said = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(str(output.get("text", "")) for output in said)
    assert "Traceback" not in text
    assert "specdec:" not in text, "a command failed with a message of one line"
    assert any("text/html" in output.get("data", {}) or "text/markdown" in output.get("data", {}) for output in said)
