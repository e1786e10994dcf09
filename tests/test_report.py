"""The report and the data frames behind it, on a real sweep with failed points and known-incorrect methods."""

from __future__ import annotations

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from conftest import command

from specdec import analysis
from specdec.cli import run as cli
from specdec.core.files import append_line
from specdec.core.tables import Column
from specdec.errors import ConfigError
from specdec.report import plots
from specdec.report.__main__ import main, parser, write
from specdec.report.content import USUAL_SLOTS, Group, ReportContent, collect
from specdec.report.page import render, tiles, verdicts
from specdec.report.plots import MethodCurve
from specdec.report.published import published_tables
from specdec.report.texts import kinds, local_tokenizer, prompts

SHARE = Column("accepted", "accepted", ".1%")
SMALL = ["pair=synthetic", "pair.hidden_size=64", "pair.num_layers=3", "data.num_prompts=5", "data.max_input_tokens=30"]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """A part of Table 1 on a small pair, and the same points once more with a budget that does not fit."""
    folder = tmp_path_factory.mktemp("report") / "results"
    words = ["experiment=paper_table1", *SMALL, "max_new_tokens=10,100000", "scheduler=plain,eqspec,dsd", "batch=2,4"]
    assert command(cli.main, *words, f"results_dir={folder}", "-m") == 1  # because of the failed points
    return folder


@pytest.fixture(scope="module")
def content(results) -> ReportContent:
    return collect([results])


@pytest.fixture(scope="module")
def written(results, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out")
    assert main([str(results), "--format", "html,md,latex,csv", "--out", str(out)]) == 0
    return out


class Page(HTMLParser):
    """Collects what a page would load and what it says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.loads += [
            f"{tag} {v}" for k, v in attributes if k in ("src", "href", "xlink:href") and not v.startswith("#")
        ]
        self.loads += [tag] if tag in ("link", "iframe", "object", "img") else []

    def handle_data(self, data):
        self.text += data


def test_frames_hold_every_point_sample_and_round(results):
    points = analysis.load(results)
    assert dict(points["status"].value_counts()) == {"done": 6, "failed": 6}
    done = points.query("status == 'done'")
    for folder, speed, p99 in zip(done["folder"], done["tokens_per_s"], done["latency_s.p99"], strict=True):
        summary = json.loads((Path(folder) / "summary.json").read_text())
        assert (summary["tokens_per_s"], summary["latency_s"]["p99"]) == (speed, p99)
    assert points.query("status == 'failed'")["error"].str.contains("leaves no room").all()
    samples, rounds = analysis.samples(results), analysis.rounds(results)
    assert len(samples) == 30
    assert samples["output_ids"].map(len).sum() == done["num_output_tokens"].sum()
    assert len(rounds) == done["num_verify_calls"].sum()
    found = analysis.connect(results).execute("select sum(num_drafted) from samples").fetchall()
    assert found == [(done["num_drafted"].sum(),)]


def test_a_point_that_was_run_again_with_success_has_not_failed(tmp_path):
    for day, status in (("2026-01-01", "failed"), ("2026-01-02", "done")):
        (tmp_path / "sweeps" / day).mkdir(parents=True)
        record = {"status": status, "pair": "p", "scheduler": "s", "batch": 1, "error": "e"}
        append_line(tmp_path / "sweeps" / day / "points.jsonl", {**record, "overrides": ["batch=1"]})
        append_line(
            tmp_path / "sweeps" / day / "points.jsonl", {**record, "status": "failed", "overrides": ["batch=2"]}
        )
    assert [point["overrides"] for point in analysis.points(tmp_path)] == [["batch=2"]]


def test_methods_are_named_by_what_tells_them_apart():
    common = {"pair": "p", "data": "d", "label": "r", "batch": 4, "drafter": "model", "batching": "fifo"}
    found = [
        {**common, "scheduler": "eqspec", "alignment": "eqspec"},
        {**common, "scheduler": "static", "alignment": "inplace"},
        {**common, "scheduler": "exspec", "alignment": "eqspec", "gamma": 3, "drafter.x": 1},
        {**common, "scheduler": "exspec", "alignment": "eqspec", "gamma": 5, "drafter.x": 1},
        {**common, "scheduler": "exspec", "alignment": "eqspec", "gamma": 5, "drafter.x": 2},
    ]
    analysis.name_methods(found)
    names = [point["method"] for point in found]
    assert names == ["eqspec", "static inplace", "exspec gamma=3", "exspec gamma=5 x=1", "exspec gamma=5 x=2"]


def test_the_page_is_self_contained_and_follows_light_and_dark(written):
    text = (written / "report.html").read_text()
    page = Page(text)
    assert page.loads == []
    assert not re.search(r"@import|url\((?!#)", text)
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"|arXiv', "", page.text)
    assert not re.search(r"#(01ee|5e51|5a61)\d\d", text), "placeholder colours are left"
    assert "prefers-color-scheme" in text
    assert text.count("<svg") >= 6
    assert len(re.findall(r"data-tip=", text)) > 50
    assert len(text) < 1_500_000


def test_the_page_tells_failures_and_known_incorrect_methods(written, content):
    page = Page((written / "report.html").read_text()).text
    assert page.count("max_new_tokens=100000 leaves no room") >= 6
    said = dict(verdicts(content))
    assert said["good"] == "All 20 rows equal their reference token for token."
    assert said["bad"] == "6 points failed; their errors are below."
    assert "dsd" in said["note"]
    assert not [tile for tile in tiles(content) if "dsd" in tile.detail], "no headline speed of what is wrong"


def test_tables_show_the_summaries_figures_and_failed_points_show_none(written, results):
    lines = [line for line in (written / "report.md").read_text().splitlines() if line.startswith("| ")]
    head = [cell.strip() for cell in lines[0].strip("|").split("|")]
    rows = [dict(zip(head, (cell.strip() for cell in line.strip("|").split("|")), strict=True)) for line in lines[2:14]]
    failed = [row for row in rows if row["exact"] == "failed"]
    assert len(failed) == 6
    assert all(row["tokens/s"] == "-" for row in failed)
    points = analysis.load(results).query("status == 'done'")
    for row in rows[:6]:
        point = points[(points["method"] == row["method"]) & (points["batch"] == int(row["batch"]))].iloc[0]
        assert row["tokens/s"].split()[0] == f"{point['tokens_per_s']:,.0f}"
        assert row["exact"].split()[0] == f"{point['num_exact']:.0f}/{point['num_prompts']:.0f}"


def test_latex_has_as_many_cells_in_each_row_and_escapes(written):
    text = (written / "report.tex").read_text()
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == text.count(r"\begin{tabular}") >= 2
    for alignment, body in re.findall(r"\\begin{tabular}{(\w+)}(.*?)\\end{tabular}", text, re.DOTALL):
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {len(alignment)}
    assert r"paper\_table1" in text
    assert not re.search(r"(?<!\\)[%_#]", re.sub(r"{%|^% .*", "", text, flags=re.MULTILINE))


def test_csv_has_every_figure(written, results):
    with (written / "points.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    points = analysis.load(results)
    assert len(rows) == len(points)
    assert set(points.columns) <= set(rows[0])
    speeds = sorted(float(row["tokens_per_s"]) for row in rows if row["tokens_per_s"])
    assert speeds == sorted(points["tokens_per_s"].dropna())
    for row in rows:
        if row["tokens_per_s_low"]:
            assert float(row["tokens_per_s_low"]) <= float(row["tokens_per_s"]) <= float(row["tokens_per_s_high"])


def test_the_papers_figures_stand_beside_ours(content):
    (table,) = published_tables(content)
    head = [column.heading for column in table.columns]
    rows = [dict(zip(head, row, strict=True)) for row in table.rows]
    eqspec = next(row for row in rows if row["method"].text == "eqspec" and row["batch"].text == "4")
    assert eqspec["exact %, paper vicuna"].text == "92.1"
    assert eqspec["exact %, ours"].text == "100.0"
    theirs_alone = next(row for row in rows if row["method"].text == "hf_assisted")
    assert theirs_alone["exact %, ours"].text == "-"


def test_without_a_checkout_there_are_no_published_figures(content, tmp_path, monkeypatch):
    monkeypatch.setattr("specdec.report.published.FILE", tmp_path / "published.csv")
    assert published_tables(content) == []


def test_token_kinds_follow_from_what_was_drafted_and_accepted():
    assert kinds([1, 2, 3, 4, 5, 6], [2, 0, 1], [2, 5, 5]) == [
        *("accepted", "accepted", "bonus", "recovered", "accepted", "recovered")
    ]
    assert kinds([1, 2], [0, 0], [0, 0]) == ["plain", "plain"]
    assert kinds([1, 2, 3], [3], [5]) == ["accepted"] * 3, "a stop within the draft leaves no token of the verifier"
    assert kinds([1, 2], [1], None) == ["accepted", "added"]


def test_shown_outputs_are_the_samples_and_differences_are_marked(content, results):
    shown = prompts(content, content.groups[0], 5)
    samples = analysis.samples(results)
    assert len(shown) == 5
    assert sum(len(rendering.points) for prompt in shown for rendering in prompt.renderings) == len(samples)
    texts = set(samples["text"])
    for prompt in shown:
        assert prompt.text is not None
        for rendering in prompt.renderings:
            assert "".join(piece.text for piece in rendering.pieces) in texts
            marked = sum(piece.is_first_difference for piece in rendering.pieces)
            assert marked == (0 if rendering.exact else 1)
    of_kind = [piece.kind for prompt in shown for rendering in prompt.renderings for piece in rendering.pieces]
    assert {"accepted", "recovered"} <= set(of_kind)


def test_without_the_tokenizer_whole_texts_are_shown(content, monkeypatch):
    assert local_tokenizer({"pair.tokenizer": "/nowhere/at/all"}) is None
    monkeypatch.setattr("specdec.report.texts.local_tokenizer", lambda point: None)
    shown = prompts(content, content.groups[0], 2)
    assert all(len(rendering.pieces) == 1 for prompt in shown for rendering in prompt.renderings)


def test_several_folders_stand_side_by_side_under_their_names(results, tmp_path):
    both = collect([f"before={results}", f"after={next(results.glob('*/summary.json')).parent}"])
    assert both.labels == ["after", "before"]
    assert len(both.groups[0].labels) == 2 or len(both.groups) > 1
    frame = pd.DataFrame(both.points)
    assert set(frame["label"]) == {"before", "after"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["RESULTS", "--format", "pdf"], "unknown --format 'pdf': choose from"),
        (["RESULTS", "--group", "piar"], "unknown key of --group 'piar'.*did you mean 'pair'"),
        (["RESULTS", "RESULTS"], "given twice"),
        (["EMPTY"], "no results in it"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(results, tmp_path, capsys, arguments, message):
    places = {"RESULTS": str(results), "EMPTY": str(tmp_path)}
    assert main([places.get(argument, argument) for argument in arguments]) == 1
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert re.search(message, said), said


def test_a_missing_package_is_named_with_the_remedy():
    with pytest.raises(ConfigError, match=r"no_such_package is not installed: pip install 'specdec\[analysis\]'"):
        analysis.require("no_such_package.part")


def test_a_method_keeps_its_colour_in_other_reports():
    def group(*methods: str) -> Group:
        common = {"status": "done", "label": "r", "batch": 1, "drafter": "model"}
        return Group({}, [{**common, "method": method} for method in methods])

    whole = group("plain", "eqspec", "static masked", "continuous inplace gamma=3").slots
    assert (whole["plain"], whole["eqspec"]) == (USUAL_SLOTS["plain"], USUAL_SLOTS["eqspec"])
    fewer = group("static masked", "plain").slots
    assert all(whole[name] == slot for name, slot in fewer.items())
    many = group(*(f"m{number}" for number in range(20))).slots
    assert len(set(many.values())) == 20, "beyond eight, colours repeat with other markers"


def test_curves_that_coincide_are_drawn_apart_and_named():
    values = {1: (0.5, None), 2: (0.7, None)}
    apart = {1: (0.1, None), 2: (0.3, (0.2, 0.4))}
    drawn = plots.curves(
        [MethodCurve(0, "a", values), MethodCurve(1, "b", dict(values)), MethodCurve(2, "c", apart)], SHARE
    )
    assert drawn.notes == ["Bands: 95% intervals.", "Curves that coincide (larger hollow markers, gaps): b on a."]
    assert "fill-opacity: 0; stroke: var(--s1)" in drawn.svg()
    assert plots.curves([MethodCurve(0, "a", {4: (0.5, (0.4, 0.6))})], SHARE).notes == ["Lines: 95% intervals."]


@pytest.mark.slow
def test_a_watched_page_reloads_itself_and_shows_what_runs(results, tmp_path):
    running = tmp_path / "results" / "0123"
    shutil.copytree(next(path.parent for path in results.glob("*/summary.json")), running)
    (running / "summary.json").unlink()
    samples = (running / "samples.jsonl").read_text().splitlines(keepends=True)
    (running / "samples.jsonl").write_text("".join(samples[:2]))
    page = render(collect([tmp_path / "results"]), 0, refresh_s=7)
    assert '<meta http-equiv="refresh" content="7">' in page
    assert "2 of 5" in Page(page).text
    assert "http-equiv" not in render(collect([results]), 0)
    with pytest.raises(ConfigError, match="--watch 0: give the seconds between two pages"):
        write(parser().parse_args([str(results), "--watch", "0"]))
