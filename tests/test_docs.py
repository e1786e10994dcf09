"""The documentation says what is so: generated pages, schemas of real runs, links."""

from __future__ import annotations

import json
import re
import runpy
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from conftest import command

from specdec.cli import run as cli
from specdec.run.forward_bound import bound_figures

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
REMEDY = "run `python scripts/make_docs.py`"


def test_the_configuration_page_is_up_to_date():
    page = runpy.run_path(str(ROOT / "scripts" / "make_docs.py"))["config_page"]()
    assert (DOCS / "config.md").read_text() == page, REMEDY


@pytest.mark.slow
def test_the_map_of_the_packages_is_up_to_date():
    """Every package with its purpose, and every import that does not follow from others."""
    scripts = runpy.run_path(str(ROOT / "scripts" / "make_map.py"))
    page = (DOCS / "architecture.md").read_text()
    assert scripts["page"]() == page, "run `python scripts/make_map.py`"
    assert "\n  cli --> training\n" in page
    assert all(purpose.strip() for purpose in re.findall(r"^\| `\w+(?:/|\.py)` \|(.*)\|$", page, re.MULTILINE))


def test_the_table_of_verifiers_and_trees_is_up_to_date():
    page = runpy.run_path(str(ROOT / "scripts" / "make_trees_table.py"))["page"]()
    assert (DOCS / "trees.md").read_text() == page, "run `python scripts/make_trees_table.py`"
    assert "| `naive` | yes | yes |" in page


def test_every_setting_of_a_run_is_explained():
    """A setting without a comment has a row without a meaning; a few names say all there is to say."""
    page = (DOCS / "config.md").read_text().partition("## Training")[0]
    rows = re.findall(r"^\| `([\w.]+)` \|[^|]*\|[^|]*\| (.*) \|$", page, re.MULTILINE)
    explained = {name for name, meaning in rows if meaning.strip()}
    obvious = {"max_new_tokens", "results_dir", "data.shuffle", "pair.draft_architecture", "draft_length.gamma"}
    assert len(rows) > 80
    assert {name for name, _ in rows} - explained <= obvious, "give these settings a comment"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A real run's folder."""
    results = tmp_path_factory.mktemp("docs")
    arguments = ["pair=synthetic", "pair.hidden_size=64", "pair.num_layers=3", "data.num_prompts=3", "batch=2"]
    arguments += ["data.max_input_tokens=20", "data.overlong=truncate", "max_new_tokens=6", f"results_dir={results}"]
    with redirect_stdout(StringIO()) as said:
        assert command(cli.main, *arguments) == 0
    return Path(json.loads(said.getvalue().strip().splitlines()[-1])["path"])


def documented(heading: str) -> set[str]:
    """Keys in the first table under a heading of docs/results.md."""
    text = (DOCS / "results.md").read_text().partition(f"\n## {heading}\n")[2]
    table = re.search(r"^\| key \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table, heading
    return set(re.findall(r"^\| `(\w+)` \|", table[1], re.MULTILINE))


@pytest.mark.parametrize("name", ["summary.json", "env.json"])
def test_documents_have_the_keys_that_the_docs_say(folder, name):
    assert set(json.loads((folder / name).read_text())) == documented(name)


def test_the_bound_has_the_keys_that_the_docs_say():
    text = (DOCS / "results.md").read_text().partition("Only with `bound=true`:")[2].partition("\n\nOnly where")[0]
    counts = dict.fromkeys(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE), 1.0)
    assert set(bound_figures([counts])) == set(counts)


@pytest.mark.parametrize("name", ["samples.jsonl", "rounds.jsonl", "attempts.jsonl"])
def test_lines_have_the_keys_that_the_docs_say(folder, name):
    lines = (folder / name).read_text().splitlines()
    assert lines
    assert all(set(json.loads(line)) == documented(name) for line in lines)


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target
