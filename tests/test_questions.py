"""Lines of prompt files in other shapes, and texts that no tokenizer takes: every one named, none passed on."""

from __future__ import annotations

import json
from dataclasses import replace
from pydoc_data.topics import topics

import pytest
import torch
from conftest import small_llama
from test_pair import composed
from test_prompts import byte_level, question

import specdec
from specdec.conformance.models import letter_tokenizer
from specdec.core.prompts import DataConfig, load_prompts
from specdec.errors import ConfigError, DataError, SpecdecError
from specdec.models.causal_lm import CausalLM


@pytest.fixture
def load(tmp_path):
    def call(lines, tokenizer=None, **settings):
        path = tmp_path / "data.jsonl"
        path.write_text("\n".join(lines) + "\n")
        cfg = DataConfig(name="test", path=str(path), **settings)
        return load_prompts(cfg, tokenizer or byte_level(), 1000)

    return call


def refused(error, match, call):
    with pytest.raises(error, match=match) as caught:
        call()
    assert isinstance(caught.value, SpecdecError)
    assert "\n" not in str(caught.value)


SHAPES = {
    '{"question_id": [1], "category": "a", "turns": ["x"]}': "question_id must be an integer or a string, not a list",
    '{"question_id": 1.5, "category": "a", "turns": ["x"]}': "question_id must be .*, not the number 1.5",
    '{"question_id": true, "category": "a", "turns": ["x"]}': "question_id must be .*, not true",
    '{"question_id": 1, "category": 3, "turns": ["x"]}': "category must be a string, not the number 3",
    '{"question_id": 1, "category": {"a": 1}, "turns": ["x"]}': "category must be a string, not an object with a",
    '{"question_id": 1, "category": "a", "turns": [["x"]]}': "turns must be a list of strings, but turn 1 is a list",
    '{"question_id": 1, "category": "a", "turns": ["x", {"role": "user", "content": "y"}]}': (
        "turn 2 is an object with role, content"
    ),
    '{"question_id": 1, "category": "a", "turns": ["x"], "turns": ["y"]}': "turns is given twice",
    '{"text": "x", "model": "m"}': r"no question_id, category, turns, nor prompt or messages \(it has text, model;",
    '{"context": "x", "answers": ["y"]}': "a context without input or question",
    '{"context": ["x"], "input": "y"}': "context must be a string, not a list of 1",
    '{"prompt": ["x"]}': "prompt must be a string, not a list of 1",
    '{"prompt": "x", "prompt": "y"}': "prompt is given twice",
    '{"messages": "x"}': "messages must be a non-empty list of objects, not a string",
    '{"messages": []}': "messages must be a non-empty list of objects, not an empty list",
    '{"messages": ["x"]}': "message 1 must have the role system, user or assistant",
    '{"messages": [{"role": "tool", "content": "x"}]}': "message 1 must have the role system, user or assistant",
    '{"messages": [{"role": "user", "content": ["x"]}]}': "the content of message 1 must be a string, not a list of 1",
    '{"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]}': (
        "message 2 has the role user, which may not come after user"
    ),
    '{"messages": [{"role": "assistant", "content": "x"}]}': (
        "message 1 has the role assistant, which may not come first"
    ),
    '{"messages": [{"role": "system", "content": "x"}]}': "no message has the role user",
    '{"question_id": "s", "category": "a", "turns": ["FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE"]}': (
        "turn 1 is a placeholder, whose text is made by SPEED-Bench's prepare_data.py"
    ),
    '"text"': "not a JSON object but a string",
    '{"question_id": 1, "category": "a", "turns": ["x\\ud83dy"]}': (
        r"turn 1 has a lone surrogate \(\\ud83d\) at character 2"
    ),
    '{"question_id": 1, "category": "a", "turns": ["x", "\\ude00"]}': r"turn 2 has a lone surrogate \(\\ude00\)",
    '{"question_id": "\\ud83d", "category": "a", "turns": ["x"]}': "question_id has a lone surrogate",
    '{"question_id": 1, "category": "\\udfff", "turns": ["x"]}': "category has a lone surrogate",
    "[" * 100_000: r"JSON that is nested too deeply",
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
    lines = [question(1, "abc"), "{", "[1]", question(2, "de"), *["5"] * 9]
    refused(
        DataError,
        r"data\.jsonl line 2: not JSON \(.*\); line 3: not a JSON object but a list of 1; line 5: .*; line 6: .*; "
        r"line 7: not a JSON object but the number 5; .*; line 12: .* number 5; and 1 more; fix the lines",
        lambda: load(lines),
    )


def test_records_of_a_dataset_are_checked_alike(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"question_id": 5, "category": "a", "turns": "abc"}\n')
    cfg = DataConfig(name="hub", path=f"file://{path}")

    def records():
        return load_prompts(cfg, byte_level(), 100)

    refused(DataError, "record 1: turns must be a non-empty list of strings, not a string", records)
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"question_id": 5, "category": "a", "turns": ["caf\u00e9"]}\n'.encode("latin-1"))
    cfg.path = f"file://{path}"
    refused(DataError, "cannot be loaded.*codec can't decode byte 0xe9", records)


# --- other shapes ------------------------------------------------------------------------------------------------


def test_prompts_and_messages_are_read_beside_questions(load):
    lines = [
        '{"prompt": "abc"}',
        '{"prompt": "de", "question_id": "mine", "category": "b"}',
        question(9, "f", "g"),
        messages("system s", "user u", "assistant v", "user w", "assistant x"),
    ]
    prompts, notes = load(lines)
    found = [(prompt.question_id, prompt.category, prompt.text, len(prompt.ids)) for prompt in prompts]
    assert found == [(1, "prompt", "abc", 3), ("mine", "b", "de", 2), (9, "a", "f", 1), (4, "messages", "w", 7)]
    assert notes == ["1 lines of data.jsonl end with an answer, which is not part of the prompt"]


def test_messages_are_played_turn_by_turn_in_a_conversation(load):
    prompts, _ = load([messages("system s", "user u", "assistant v", "user w")], turns="conversation")
    assert [(prompt.turn, prompt.text, len(prompt.ids)) for prompt in prompts] == [(0, "u", 3), (1, "w", 1)]


def test_messages_go_through_the_chat_template(load):
    tokenizer = byte_level()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role[0] }}{{ m.content }}>{% endfor %}{{ '!' }}"
    line = [messages("system s", "user u", "assistant v", "user w")]
    assert load(line, tokenizer)[0][0].ids == tokenizer("<ss><uu><av><uw>!").input_ids
    tokenizer.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    refused(DataError, "question_id 1: the .* chat template refuses it .no system role.", lambda: load(line, tokenizer))


def messages(*texts):
    roles = [dict(zip(("role", "content"), text.split(), strict=True)) for text in texts]
    return json.dumps({"messages": roles})


# --- SPEED-Bench ---------------------------------------------------------------------------------------------------


def speed_bench_stand_in(num_questions: int = 12) -> list[dict[str, object]]:
    """Records of SPEED-Bench's schema, of the Python documentation that comes with the interpreter."""
    texts = sorted(topics.items())
    return [
        {
            "question_id": f"stand_in-{number}",
            "category": ("coding", "qa", "summarization")[number % 3],
            "sub_category": title,
            "turns": [f"Explain: {text[:60]}", "Shorter, please."][: 1 + number % 2],
            "source": "pydoc_data.topics",
            "src_id": title,
            "difficulty": None if number % 4 else "hard",
            "multiturn": bool(number % 2),
        }
        for number, (title, text) in enumerate(texts[:num_questions])
    ]


def test_speed_benchs_schema_is_read_through_datasets(tmp_path):
    (tmp_path / "qualitative").mkdir()
    for folder, shift in ((tmp_path / "qualitative", 0), (tmp_path, 3)):
        lines = [json.dumps(record) for record in speed_bench_stand_in(9 - shift)]
        (folder / "test.jsonl").write_text("\n".join(lines))
    card = "---\nconfigs:\n- config_name: qualitative\n  data_files: [{split: test, path: qualitative/test.jsonl}]\n"
    (tmp_path / "README.md").write_text(
        card + "- config_name: other\n  data_files: [{split: test, path: test.jsonl}]\n---\n"
    )
    settings = composed("data=speed_bench", f"data.path='{tmp_path}'").data
    assert (settings.subset, settings.split) == ("qualitative", "test")
    sizes = {subset: len(load_prompts(replace(settings, subset=subset), byte_level(), 200)[0]) for subset in SUBSETS}
    assert sizes == {"qualitative": 9, "other": 6}
    prompts, _ = load_prompts(replace(settings, turns="conversation", category=["qa"]), byte_level(), 200)
    assert [(prompt.question_id, prompt.turn) for prompt in prompts[:3]] == [
        ("stand_in-1", 0),
        ("stand_in-1", 1),
        ("stand_in-4", 0),
    ]


def test_long_contexts_come_with_their_question_and_choices(tmp_path):
    lines = [
        {"_id": "66f2", "domain": "Code", "context": "a text", "question": "which?", "choice_A": "b", "choice_B": "c"},
        {"_id": "0a1b", "dataset": "qasper", "context": "a text", "input": "which?", "answers": ["b"], "length": 2},
        {"_id": "2c3d", "dataset": "gov_report", "context": "a text", "input": "", "answers": ["b"]},
        {"_id": "4e5f", "domain": "Code", "context": "a text " * 40, "question": "which?"},
    ]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = composed("data=longbench", f"data.path={tmp_path}/long.jsonl").data
    prompts, notes = load_prompts(settings, byte_level(), 100)
    texts = ["a text\n\nwhich?\n(A) b\n(B) c", "a text\n\nwhich?", "a text"]
    assert [prompt.text for prompt in prompts] == texts
    assert [prompt.question_id for prompt in prompts] == ["66f2", "0a1b", "2c3d"]
    assert [prompt.category for prompt in prompts] == ["Code", "qasper", "gov_report"]
    assert any("1 prompts" in note for note in notes), "the fourth would have lost its question"


SUBSETS = ("qualitative", "other")


# --- the library ----------------------------------------------------------------------------------------------------


def test_texts_that_no_tokenizer_takes_are_named_by_their_row():
    engine = specdec.Engine(CausalLM(small_llama(0, torch.float32)), None, tokenizer=letter_tokenizer())
    refused(
        DataError,
        r"row 1: its text has a lone surrogate \(\\ud83d\) at character 3",
        lambda: engine.generate(["a", "ab\ud83d"]),
    )
    refused(
        ConfigError, "stop_strings: .* no output can contain it", lambda: engine.generate(["a"], stop_strings="\ud83d")
    )


def test_stop_strings_that_stop_nothing_are_refused_by_a_run(run):
    code, _, err = run('stop_strings=["a\ud83d"]', "data.num_prompts=2", "baseline=false")
    assert code == 1
    assert "has a lone surrogate" in err
