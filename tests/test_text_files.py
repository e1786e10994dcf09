"""Files of users in other encodings: refused with file and line, never changed silently."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest
import torch
from conftest import small_llama
from test_drafters import context_of
from test_prompts import byte_level, question

from specdec import analysis
from specdec.conformance.models import letter_tokenizer
from specdec.core.prompts import DataConfig, load_prompts
from specdec.errors import ConfigError, DataError, SpecdecError
from specdec.models.causal_lm import CausalLM
from specdec.registry import create
from specdec.report.__main__ import main as report
from specdec.run.loggers.csv import CsvLogger
from specdec.run.serving.trace import TraceArrivals
from specdec.training import TrainingError
from specdec.training.corpus import read_corpus
from specdec.training.corpus_config import CorpusConfig
from specdec.training.documents import read_documents

LINES = [question(1, "plain"), question(2, "caf\N{LATIN SMALL LETTER E WITH ACUTE}"), question(3, "more")]
UTF8 = "\n".join(json.dumps(json.loads(line), ensure_ascii=False) for line in LINES) + "\n"
CHINESE = UTF8.replace("\N{LATIN SMALL LETTER E WITH ACUTE}", "\u4f60\u597d")


@pytest.fixture
def load(tmp_path):
    def call(content: bytes | str, **settings):
        path = tmp_path / "data.jsonl"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        cfg = DataConfig(name="test", path=str(path), **settings)
        return load_prompts(cfg, byte_level(), 1000)

    return call


def refused(error, match, call):
    with pytest.raises(error, match=match) as caught:
        call()
    assert isinstance(caught.value, SpecdecError)
    assert "\n" not in str(caught.value)


# --- prompts: encodings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (UTF8.encode("latin-1"), "line 2: byte 0xe9 at position 51 is not UTF-8"),
        (CHINESE.encode("gbk"), "line 2: byte 0xc4 at position 51 is not UTF-8"),
        (b"\xef\xbb\xbf" + UTF8.encode("latin-1"), "line 2: byte 0xe9 at position 51 is not UTF-8"),
        (
            UTF8.encode() + b"\xed\xa0\xbd\n",
            "line 4: byte 0xed at position 1 is not UTF-8",
        ),  # a surrogate as if it were a character
    ],
)
def test_bytes_that_are_no_utf8_are_named_by_their_line(load, content, found):
    refused(DataError, rf"data\.jsonl {found}; save the file as UTF-8, or set data\.broken=skip", lambda: load(content))


def test_a_line_that_is_no_utf8_is_skipped_when_told(load):
    prompts, notes = load(UTF8.encode("latin-1"), broken="skip")
    assert [prompt.question_id for prompt in prompts] == [1, 3]
    assert notes == ["1 broken lines of data.jsonl skipped: line 2: byte 0xe9 at position 51 is not UTF-8"]


def test_a_byte_order_mark_of_utf8_is_dropped(load):
    prompts, notes = load(b"\xef\xbb\xbf" + UTF8.encode())
    assert prompts == load(UTF8)[0]
    assert notes == []
    assert prompts[1].text == "caf\N{LATIN SMALL LETTER E WITH ACUTE}"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
@pytest.mark.parametrize("broken", ["refuse", "skip"])
def test_wide_characters_are_called_by_their_name(load, encoding, broken):
    name = encoding[:6].upper()
    refused(
        DataError,
        rf"data\.jsonl: it looks like {name}.*save the file as UTF-8",
        lambda: load(UTF8.encode(encoding), broken=broken),
    )


def test_a_compressed_file_is_called_so(load):
    refused(DataError, "it looks like a gzip file", lambda: load(gzip.compress(UTF8.encode())))


def test_line_ends_of_all_systems_are_ends(load):
    for end in ("\r\n", "\r"):
        assert load(UTF8.replace("\n", end).encode())[0] == load(UTF8)[0]


def test_a_run_with_a_latin1_file_fails_in_one_line(run, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(UTF8.encode("latin-1"))
    code, _, err = run("data=jsonl", f"data.path={path}", "baseline=false")
    assert code == 1
    assert err.startswith("specdec: mine.jsonl line 2: byte 0xe9")
    assert len(err.strip().splitlines()) == 1
    assert not list((tmp_path / "results").glob("*/samples.jsonl"))


# --- other files of users -------------------------------------------------------------------------------------------


def test_a_trigram_corpus_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "corpus.txt"
    context = context_of(CausalLM(small_llama(0, torch.float32)), tokenizer=letter_tokenizer())
    path.write_bytes("abc\ncaf\u00e9\nabc\n\u00fc\n".encode("latin-1"))
    refused(
        ConfigError,
        r"drafter\.corpus=.*line 2: byte 0xe9 at position 4 is not UTF-8; line 4: byte 0xfc at position 1",
        lambda: create("drafter", "trigram", context, corpus=str(path)),
    )
    path.write_bytes("abc\nabc\n".encode("utf-16-le"))
    refused(ConfigError, "looks like UTF-16 without", lambda: create("drafter", "trigram", context, corpus=str(path)))
    path.write_bytes(b"\xef\xbb\xbfabc\nabd\n")
    marked = create("drafter", "trigram", context, corpus=str(path))
    path.write_bytes(b"abc\nabd\n")
    assert marked._base == create("drafter", "trigram", context, corpus=str(path))._base != {}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b'{"arrival_s": 1}\n\xff\n', r"trace\.jsonl line 2: .*byte 0xff at position 1 is not UTF-8"),
        (b'{"arrival_s": 1}\n{"arrival_s": NaN}\n[]\n', r"line 2: no number under arrival_s .*; line 3: no number"),
        (b'{"arrival_s": true}\n', "line 1: no number under arrival_s"),
        ('{"arrival_s": 1}\n'.encode("utf-16"), "looks like UTF-16"),
    ],
)
def test_a_trace_that_cannot_be_read_is_refused_before_anything_runs(tmp_path, content, match):
    path = tmp_path / "trace.jsonl"
    path.write_bytes(content)
    refused(DataError, match, lambda: TraceArrivals(path=str(path)))


@pytest.mark.slow
def test_a_trace_that_is_too_short_is_refused_before_the_reference(run, tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"arrival_s": 1}\n\n')
    code, _, err = run("arrivals=trace", f"arrivals.path={path}", "data.num_prompts=2", "baseline=false")
    assert code == 1
    assert "has 1 arrivals for 2 conversations" in err
    assert not list((tmp_path / "results").glob("reference/*")), "nothing was decoded yet"


@pytest.mark.parametrize(("source", "name"), [("text", "a.txt"), ("jsonl", "a.jsonl")])
def test_a_corpus_in_another_encoding_is_refused(tmp_path, monkeypatch, source, name):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / name
    text = "".join(
        (f'{{"text": "line {i} \u00e9"}}\n' if source == "jsonl" else f"line {i} \u00e9\n") for i in range(3)
    )
    path.write_bytes(text.encode("latin-1"))
    cfg = CorpusConfig(source=source, path=str(path))
    refused(TrainingError, rf"{name}: line 1: byte 0xe9 .*; line 2: .*; line 3: ", lambda: list(read_documents(cfg)))
    path.write_bytes(text.encode("utf-16-le"))
    refused(TrainingError, f"{name}: it looks like UTF-16 without", lambda: list(read_documents(cfg)))
    path.write_bytes(text.encode())
    plain = list(read_documents(cfg))
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert list(read_documents(cfg)) == plain, "a byte order mark is no part of the text"


def test_a_lone_surrogate_in_a_corpus_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b\\ud83d"}\n')
    cfg = CorpusConfig(source="jsonl", path=str(tmp_path / "a.jsonl"))
    refused(
        TrainingError,
        r"corpus\.path=.*surrogate pair in string is invalid. in row 1",
        lambda: list(read_documents(cfg)),
    )


def test_a_byte_order_mark_is_no_part_of_a_program(tmp_path):
    for number in range(40):
        text = f"# Module {number}\n" + "def function():\n    return None\n" * 20
        (tmp_path / f"m{number}.py").write_bytes(b"\xef\xbb\xbf" + text.encode())
    corpus = read_corpus(CorpusConfig(root=str(tmp_path), heldout_percent=20))
    assert all(file.text.startswith("# Module") for file in [*corpus.train, *corpus.heldout])


def test_a_csv_file_in_another_encoding_is_refused_before_the_run(tmp_path):
    path = tmp_path / "points.csv"
    path.write_bytes("caf\u00e9,pair\n".encode("latin-1"))
    refused(ConfigError, r"logger\.path: .*line 1: byte 0xe9", lambda: CsvLogger(path=str(path)).start("", {}, [], {}))
    path.write_bytes(b"")
    logger = CsvLogger(path=str(path))
    logger.start("", {}, [], {})
    logger.finish({"pair": "a"}, [])
    assert list(csv.DictReader(path.open())) == [{"pair": "a"}]


# --- results --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a small finished run."""
    import sys

    from specdec.cli import run as cli

    results = tmp_path_factory.mktemp("finished")
    arguments = ["pair=synthetic", "pair.hidden_size=64", "pair.num_layers=3", "data.num_prompts=3", "max_new_tokens=4"]
    arguments += ["data.max_input_tokens=20", "data.overlong=truncate", "baseline=false", f"results_dir={results}"]
    before, sys.argv = sys.argv, ["run.py", *arguments]
    try:
        cli.main()
    finally:
        sys.argv = before
    return next(results.glob("*/summary.json")).parent


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("summary.json", b'{"status": "caf\xe9"}', "summary.json is damaged .*can't decode byte 0xe9"),
        ("summary.json", b'{"status": ', "summary.json is damaged"),
        ("config.yaml", b"batch: \xe9\n", "config.yaml is damaged"),
        ("config.yaml", b"batch: [1\n", "config.yaml is damaged"),
        ("samples.jsonl", None, r"samples.jsonl is damaged \(2 of 3 lines can be read\)"),
        ("rounds.jsonl", None, r"rounds.jsonl is damaged \(\d+ of \d+ lines can be read\)"),
    ],
)
def test_a_report_does_not_pass_over_damaged_results(finished, tmp_path, capsys, name, content, match):
    import re

    file = finished / name
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    file.write_bytes(content if content is not None else b"".join([lines[0], b"\xff" + lines[1], *lines[2:]]))
    try:
        assert report([str(finished.parent), "--format", "md", "--out", str(tmp_path)]) == 1
        said = capsys.readouterr().err
        assert re.search(match, said), said
        assert len(said.strip().splitlines()) == 1
    finally:
        file.write_bytes(whole)
    assert len(analysis.points(finished.parent)) == 1
