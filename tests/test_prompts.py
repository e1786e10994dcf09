"""Reading, checking, selecting and encoding prompts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from specdec.core.prompts import DataConfig, load_prompts
from specdec.errors import ConfigError, DataError

_BESIDE = Path(__file__).parent.parent.parent / "shared" / "data" / "spec_bench.jsonl"
SPEC_BENCH = Path(os.environ.get("SPECDEC_SPEC_BENCH", _BESIDE))


def byte_level() -> PreTrainedTokenizerFast:
    """One token per byte-level character: lengths are easy to reckon."""
    alphabet = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    plain = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=plain)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level()


def question(number, *turns, category="a"):
    return json.dumps({"question_id": number, "category": category, "turns": list(turns)})


@pytest.fixture
def load(tmp_path, tokenizer):
    def call(lines, limit=100, **settings):
        path = tmp_path / "data.jsonl"
        path.write_text("\n".join(lines) + "\n")
        cfg = DataConfig(name="test", path=str(path), **settings)
        return load_prompts(cfg, tokenizer, limit)

    return call


def test_first_turns_in_order(load):
    prompts, notes = load([question(7, "abc", "second"), question(8, "de", category="b")])
    assert [(p.index, p.question_id, p.category, len(p.ids)) for p in prompts] == [(0, 7, "a", 3), (1, 8, "b", 2)]
    assert notes == []


def test_all_turns_and_num_prompts(load):
    prompts, _ = load([question(1, "abc", "de"), question(2, "f")], turns="all", num_prompts=2)
    assert [(p.question_id, len(p.ids)) for p in prompts] == [(1, 3), (1, 2)]


def test_category_and_seeded_shuffle(load):
    lines = [question(n, "x" * (n + 1), category="ab"[n % 2]) for n in range(20)]
    assert [p.question_id for p in load(lines, category=["b"])[0]] == list(range(1, 20, 2))
    shuffled = [p.question_id for p in load(lines, shuffle=True, seed=3)[0]]
    assert shuffled != list(range(20))
    assert sorted(shuffled) == list(range(20))
    assert shuffled == [p.question_id for p in load(lines, shuffle=True, seed=3)[0]]
    assert shuffled != [p.question_id for p in load(lines, shuffle=True, seed=4)[0]]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{broken", "line 2: not JSON"),
        ("[1, 2]", "line 2: not a JSON object"),
        ('{"question_id": 1, "turns": ["x"]}', "line 2: no category"),
        ('{"question_id": 1, "category": "a", "turns": "text"}', "line 2: turns must be a non-empty list of strings"),
        ('{"question_id": 1, "category": "a", "turns": []}', "line 2: turns must be a non-empty list of strings"),
        ('{"question_id": 1, "category": "a", "turns": [3]}', "line 2: turns must be a list of strings"),
    ],
)
def test_a_broken_line_is_named_and_skipped_only_when_told(load, line, reason):
    lines = [question(1, "abc"), line, question(3, "de")]
    with pytest.raises(DataError, match=reason):
        load(lines)
    prompts, notes = load(lines, broken="skip")
    assert [p.question_id for p in prompts] == [1, 3]
    assert any(reason in note for note in notes)


def test_empty_prompts(load):
    lines = [question(1, ""), question(2, "ab")]
    with pytest.raises(DataError, match="question_id 1: the prompt has no tokens"):
        load(lines)
    prompts, notes = load(lines, empty="skip")
    assert [p.question_id for p in prompts] == [2]
    assert notes == ["1 prompts skipped because they are empty"]
    with pytest.raises(DataError, match="no prompt is left"):
        load(lines[:1], empty="skip")


def test_overlong_prompts(load):
    lines = [question(1, "abcdefgh"), question(2, "ab")]
    with pytest.raises(DataError, match="question_id 1: the prompt has 8 tokens, but only 5 fit"):
        load(lines, limit=5)
    prompts, notes = load(lines, limit=5, overlong="truncate")
    assert [len(p.ids) for p in prompts] == [5, 2]
    assert notes == ["1 prompts truncated to their first 5 tokens"]
    prompts, notes = load(lines, max_input_tokens=4, overlong="skip")
    assert [p.question_id for p in prompts] == [2]
    assert notes == ["1 prompts skipped because they are longer than 4 tokens"]


def test_chat_template(load, tokenizer):
    lines = [question(1, "abc")]
    with pytest.raises(ConfigError, match="this tokenizer has none"):
        load(lines, chat_template="always")
    tokenizer.chat_template = "<{{ messages[0]['content'] }}>"
    try:
        assert len(load(lines)[0][0].ids) == 5
        assert len(load(lines, chat_template="never")[0][0].ids) == 3
    finally:
        tokenizer.chat_template = None


def test_local_datasets_folder(tmp_path, tokenizer):
    """A path that is no file goes through `datasets`; a folder of JSONL files is what a Hub dataset looks like."""
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "train.jsonl").write_text(question(5, "abc") + "\n" + question(6, "de") + "\n")
    folder = tmp_path / "hub"
    cfg = DataConfig(name="hub", path=f"file://{folder}/train.jsonl")
    prompts, _ = load_prompts(cfg, tokenizer, 100)
    assert [p.question_id for p in prompts] == [5, 6]


def test_missing_source(tokenizer):
    cfg = DataConfig(name="mine", path="no/such/file.jsonl")
    with pytest.raises(DataError, match=r"no/such/file\.jsonl: no such file"):
        load_prompts(cfg, tokenizer, 100)
    with pytest.raises(ConfigError, match=r"needs data\.path"):
        load_prompts(DataConfig(name="mine"), tokenizer, 100)


@pytest.mark.skipif(not SPEC_BENCH.exists(), reason="the Spec-Bench prompts are not on this machine")
def test_spec_bench(tokenizer):
    cfg = DataConfig(name="spec_bench", path=str(SPEC_BENCH), overlong="truncate")
    prompts, _ = load_prompts(cfg, tokenizer, 256)
    assert len(prompts) == 480
    assert len({p.category for p in prompts}) == 13
    assert max(len(p.ids) for p in prompts) == 256
