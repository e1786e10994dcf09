"""Lines of prompt files in other shapes, and texts that no tokenizer takes: every one named, none passed on."""

from __future__ import annotations

import pytest
import torch
from conftest import small_llama
from test_prompts import byte_level, question

import specdec
from specdec.conformance.models import letter_tokenizer
from specdec.core.prompts import DataConfig, load_prompts
from specdec.errors import ConfigError, DataError, SpecdecError
from specdec.models.causal_lm import CausalLM


@pytest.fixture
def load(tmp_path):
    def call(lines, **settings):
        path = tmp_path / "data.jsonl"
        path.write_text("\n".join(lines) + "\n")
        cfg = DataConfig(name="test", path=str(path), **settings)
        return load_prompts(cfg, byte_level(), 1000)

    return call


def refused(error, match, call):
    with pytest.raises(error, match=match) as caught:
        call()
    assert isinstance(caught.value, SpecdecError)
    assert "\n" not in str(caught.value)


SHAPES = {
    '{"question_id": [1], "category": "a", "turns": ["x"]}': "question_id must be a whole number or a text, not a list",
    '{"question_id": 1.5, "category": "a", "turns": ["x"]}': "question_id must be .*, not the number 1.5",
    '{"question_id": true, "category": "a", "turns": ["x"]}': "question_id must be .*, not true",
    '{"question_id": 1, "category": 3, "turns": ["x"]}': "category must be a text, not the number 3",
    '{"question_id": 1, "category": {"a": 1}, "turns": ["x"]}': "category must be a text, not an object with a",
    '{"question_id": 1, "category": "a", "turns": [["x"]]}': "turns must be a list of strings, but turn 1 is a list",
    '{"question_id": 1, "category": "a", "turns": ["x", {"role": "user", "content": "y"}]}': (
        "turn 2 is an object with role, content"
    ),
    '{"question_id": 1, "category": "a", "turns": ["x"], "turns": ["y"]}': "turns is given twice",
    '{"messages": [{"role": "user", "content": "x"}], "model": "m"}': (
        r"no question_id, category, turns \(it has messages, model\)"
    ),
    '"text"': "not a JSON object but a text",
    '{"question_id": 1, "category": "a", "turns": ["x\\ud83dy"]}': (
        r"turn 1 has a lone surrogate \(\\ud83d\) at character 2"
    ),
    '{"question_id": 1, "category": "a", "turns": ["x", "\\ude00"]}': r"turn 2 has a lone surrogate \(\\ude00\)",
    '{"question_id": "\\ud83d", "category": "a", "turns": ["x"]}': "question_id has a lone surrogate",
    '{"question_id": 1, "category": "\\udfff", "turns": ["x"]}': "category has a lone surrogate",
    "[" * 100_000: r"not JSON that can be read \(nested too deeply\)",
}


@pytest.mark.parametrize("line", SHAPES, ids=lambda line: line[:50])
def test_every_field_of_a_line_is_checked(load, line):
    lines = [question(7, "abc"), line, question(8, "de")]
    refused(
        DataError, f"line 2: {SHAPES[line]}" if line[0] != "{" else f"line 2: .*{SHAPES[line]}", lambda: load(lines)
    )
    assert [prompt.question_id for prompt in load(lines, broken="skip")[0]] == [7, 8]


def test_a_pair_of_surrogates_is_a_character(load):
    prompts, _ = load(['{"question_id": 1, "category": "a", "turns": ["\\ud83d\\ude00"]}'])
    assert prompts[0].text == "\N{GRINNING FACE}"


def test_all_broken_lines_are_named_up_to_a_number(load):
    lines = [question(1, "abc"), "{", "[1]", question(2, "de"), *["5"] * 4]
    refused(
        DataError,
        r"data\.jsonl line 2: not JSON \(.*\); line 3: not a JSON object but a list of 1; line 5: .*; line 6: .*; "
        r"line 7: not a JSON object but the number 5; and 1 more; mend the lines",
        lambda: load(lines),
    )


def test_records_of_a_dataset_are_checked_alike(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"question_id": 5, "category": "a", "turns": "abc"}\n')
    cfg = DataConfig(name="hub", path=f"file://{path}")

    def records():
        return load_prompts(cfg, byte_level(), 100)

    refused(DataError, "record 1: turns must be a list of strings, at least one, not a text", records)
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"question_id": 5, "category": "a", "turns": ["caf\u00e9"]}\n'.encode("latin-1"))
    cfg.path = f"file://{path}"
    refused(DataError, "cannot be loaded.*codec can't decode byte 0xe9", records)


# --- the library ----------------------------------------------------------------------------------------------------


def test_texts_that_no_tokenizer_takes_are_named_by_their_row():
    engine = specdec.Engine(CausalLM(small_llama(0, torch.float32)), None, tokenizer=letter_tokenizer())
    refused(
        DataError,
        r"row 1: its text has a lone surrogate \(\\ud83d\) at character 3",
        lambda: engine.generate(["a", "ab\ud83d"]),
    )
    refused(ConfigError, "stop_strings: .* would stop nothing", lambda: engine.generate(["a"], stop_strings="\ud83d"))


def test_stop_strings_that_stop_nothing_are_refused_by_a_run(run):
    code, _, err = run('stop_strings=["a\ud83d"]', "data.num_prompts=2", "baseline=false")
    assert code == 1
    assert "has a lone surrogate" in err
