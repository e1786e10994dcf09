"""Run the notebooks from their first cell to their last and store their outputs in them.

    python scripts/run_notebooks.py                  # all of notebooks/; needs pip install -e ".[dev]"
    python scripts/run_notebooks.py notebooks/03*    # these

They run in a scratch folder, so that nothing in them was computed before. Progress bars, colours and the time of day
are not stored.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
ROOT = Path(__file__).resolve().parent.parent


def main(paths: list[Path]) -> None:
    """Run and rewrite each notebook."""
    for path in paths:
        book = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            client = NotebookClient(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}})
            client.execute()
        clean(book)
        nbformat.write(book, path)
        print(path)


def clean(book: nbformat.NotebookNode) -> None:
    """Keep of each cell's outputs what a reader wants."""
    for cell in book.cells:
        cell.metadata.pop("execution", None)
        kept: list[nbformat.NotebookNode] = []
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                continue
            if "text" in output:
                output["text"] = _COLOUR.sub("", output["text"])
            if kept and kept[-1].get("name") == output.get("name") == "stdout":
                kept[-1]["text"] += output["text"]
            else:
                kept.append(output)
        if "outputs" in cell:
            cell["outputs"] = kept


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]] or sorted((ROOT / "notebooks").glob("*.ipynb")))
