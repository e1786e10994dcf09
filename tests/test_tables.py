"""The writer of tables and the catalogue of columns that console, report, benchmark and loggers share."""

from __future__ import annotations

import json
from pathlib import Path

from specdec.core.columns import COLUMNS, columns
from specdec.core.tables import Cell, Column, Table, latex, latex_float, markdown, record_table, text_table

DOCS = Path(__file__).parent.parent / "docs"


def test_a_column_writes_a_figure_and_its_interval_alike():
    speed, share, calls = columns("tokens_per_s", "verify_share", "verify_s_per_call")
    assert speed.cell({"tokens_per_s": 1234.4}, (999.6, 2000.0)) == Cell("1,234", "[1,000, 2,000]", 1234.4)
    assert speed.cell({"tokens_per_s": 5.0}, (5.0, 5.0)).spread == "", "an interval without width says nothing"
    record = {"verify_s": 2.0, "decode_s": 4.0, "num_verify_calls": 100}
    assert share.cell(record).text == "50.0%"
    assert calls.cell(record).text == "20.0", "milliseconds"
    assert share.cell({"verify_s": 2.0, "decode_s": 0.0}).text == share.cell({}).text == "-"
    assert columns("pair")[0].cell({}).text == ""
    assert columns("batch")[0].cell({"batch": 8}).value == 8


def test_the_exact_column_tells_near_ties_from_failures():
    (exact,) = columns("num_exact")
    done = {"status": "done", "num_exact": 3, "num_prompts": 5, "num_failures": 0, "num_explained": 2}
    assert exact.cell(done) == Cell("3/5", "2 near-ties", 0.6, "warn")
    assert exact.cell({**done, "num_failures": 1, "num_explained": 1}) == Cell("3/5", "1 failures", 0.6, "bad")
    assert exact.cell({**done, "num_exact": 5, "num_explained": 0}).tone == "good"
    assert exact.cell({**done, "num_exact": None}).text == "-"
    assert exact.cell({"status": "failed"}) == Cell("failed", "", -1, "bad")


def test_markdown_and_latex_escape_and_align():
    table = Table([Column("a|b", "a"), Column("x_%", "x", ".1f")], [[Cell("p|q\nr"), Cell("1.0", "[0.5, 1.5]")]])
    assert markdown(table) == "| a\\|b | x_% |\n| --- | ---: |\n| p\\|q r | 1.0 |\n"
    wide = Table([Column("x", "x", ".1f", shows_interval=True)], [table.rows[0][1:]])
    assert "| 1.0 [0.5, 1.5] |" in markdown(wide)
    assert "1.0 {\\scriptsize [0.5, 1.5]} \\\\" in latex(wide)
    assert r"a\textbar{}b & x\_\% \\" in latex(table)
    assert "\\begin{tabular}{lr}" in latex(table)
    assert r"\caption{T\_1. 5\%.}" in latex_float(Table(table.columns, table.rows, "T_1", "5%"))
    float_ = latex_float(Table(table.columns, table.rows, "pair T_1", "pair T_1, 5%"))
    assert r"\caption{pair T\_1, 5\%.}" in float_, "the title is not said twice"
    assert r"\label{tab:pair-t-1}" in float_
    rows = text_table(["m", "n"], [["a", "1"], ["a", "2"], ["b", "3"]])
    assert latex(rows, spaced=True).count(r"\addlinespace") == 1
    assert latex(rows).count(r"\addlinespace") == 0


def test_every_column_of_a_summary_is_documented():
    """A key that tables read and no run writes would be an empty column for ever."""
    text = (DOCS / "results.md").read_text()
    ours = {"method", "label", "category", "ratio", "warm_up_s", "align_s_per_round", "speedup_vs_own_batch_1"}
    for column in COLUMNS.values():
        assert column.key in ours or f"`{column.key.partition('.')[0]}`" in text, column
        assert column.meaning, column


def test_a_table_of_records_holds_what_json_gives():
    record = json.loads('{"pair": "tiny", "batch": 8, "gamma": null, "tokens_per_s": 10.5}')
    table = record_table(columns("pair", "batch", "gamma", "tokens_per_s"), [record])
    assert markdown(table).splitlines()[-1] == "| tiny | 8 | - | 10 |"
