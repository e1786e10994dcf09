"""Long prompts from the standard library: their schema, their lengths, and the same file for the same seed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from specdec.core.questions import question_of

LENGTHS = [1024, 2048]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parent.parent / "scripts" / "make_long_prompts.py"
    spec = importlib.util.spec_from_file_location("make_long_prompts", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and a few pairs of them, so that a text that was cut within a pair is encoded in another way."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(a, b) for a in "aeiou" for b in "nrst"]
    vocab = {token: i for i, token in enumerate([*letters, *(a + b for a, b in pairs)])}
    made = Tokenizer(models.BPE(vocab, pairs))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.mark.nightly
def test_prompts_have_their_lengths_and_tasks(script, tokenizer):
    lines = list(script.prompts(tokenizer, LENGTHS, 2, seed=3))
    assert len({line["question_id"] for line in lines}) == len(lines) == len(LENGTHS) * len(script.TASKS) * 2
    for line in lines:
        question = question_of(line, 0)
        task, length = question.category.split()
        text = question.messages[0]["content"]
        num_tokens = len(tokenizer(text)["input_ids"])
        assert int(length) - script.SLACK <= num_tokens <= int(length), question.question_id
        if task == "find":
            name = text.rsplit("entry of ", 1)[1].split(" from")[0]
            assert f"\n\n{name}\n" in text, "the entry that is asked for must be there"
    assert lines == list(script.prompts(tokenizer, LENGTHS, 2, seed=3))
    assert lines != list(script.prompts(tokenizer, LENGTHS, 2, seed=4))


def test_a_text_that_is_too_short_is_refused(script, tokenizer):
    with pytest.raises(ValueError, match="too few tokens"):
        script.Cut(tokenizer, 1024, None)("", "short", "")
