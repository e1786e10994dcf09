"""Hooks of mkdocs (see mkdocs.yml): the site has the pages of the whole repository, so that links are the same in both.

Notebooks become pages with their stored outputs. Files that pages link to (figures, tables, sources) are copied; a link
to a folder leads to its README. A link that leads nowhere is left as it is, which `mkdocs build --strict` refuses.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "experiments/**/*.md", "specdec/assets/tiny/*.md")
NOTEBOOKS = ("notebooks/*.ipynb", "experiments/**/*.ipynb")
_LINK = re.compile(r"(\[[^\]]*\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """All other pages follow those that mkdocs.yml lists."""
    listed = str(config.nav)
    found = {path.relative_to(ROOT) for name in (*PAGES, *NOTEBOOKS) for path in ROOT.glob(name)}
    pages = sorted({path.with_suffix(".md").as_posix() for path in found})
    rest = [page for page in pages if f"'{page}'" not in listed]
    studies = [page for page in rest if page.startswith("experiments/")]
    titled = [{page.removeprefix("experiments/").removesuffix("/README.md"): page} for page in studies]
    more = [page for page in rest if page not in studies]
    config.nav = [*(config.nav or []), {"Studies": titled}, *([{"More": more}] if more else [])]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The repository's pages in place of those of docs_dir, and everything that they link to."""
    for file in list(files):
        if file.abs_src_path and Path(file.abs_src_path).is_relative_to(config.docs_dir):
            files.remove(file)
    texts = {path.relative_to(ROOT).as_posix(): path.read_text() for name in PAGES for path in ROOT.glob(name)}
    for path in (path for name in NOTEBOOKS for path in ROOT.glob(name)):
        texts[path.relative_to(ROOT).with_suffix(".md").as_posix()] = notebook_page(json.loads(path.read_text()))
    links = [(page, link) for page, text in texts.items() for _, link, _ in _LINK.findall(text)]
    linked = {target for page, link in links if (target := _at(page, link))}
    for page, text in texts.items():
        files.append(File.generated(config, page, content=text))
    for target in sorted(linked - texts.keys()):
        if (ROOT / target).is_file() and f"{target.removesuffix('.ipynb')}.md" not in texts:
            files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links to notebooks and folders lead to pages."""

    def replaced(found: re.Match[str]) -> str:
        target = _at(page.file.src_uri, found[2])
        if target is None:
            return found[0]
        there = posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")
        if target.endswith(".ipynb"):
            return f"{found[1]}{there.removesuffix('.ipynb')}.md{found[3]}"
        if (ROOT / target).is_dir():
            first = next((name for name in ("README.md", "index.md") if (ROOT / target / name).exists()), None)
            return f"{found[1]}{there}/{first}{found[3]}" if first else found[1][1:-2]
        return found[0]

    return _LINK.sub(replaced, markdown)


def notebook_page(notebook: dict[str, Any]) -> str:
    """A notebook as Markdown: text, code, and the stored outputs."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code":
            parts += [f"```python\n{source}\n```", *map(_output, cell["outputs"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f'<img alt="output" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
    if "text/html" in data:
        return re.sub(r"<style.*?</style>|\n", "", "".join(data["text/html"]), flags=re.DOTALL)
    if "text/markdown" in data:
        return "".join(data["text/markdown"])
    text = "".join(output.get("text") or data.get("text/plain") or "").rstrip()
    return f"````text\n{text}\n````" if text else ""


def _at(page: str, link: str) -> str | None:
    """What a page's link leads to, if there is such a file or folder."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return target if not target.startswith("..") and (ROOT / target).exists() else None
