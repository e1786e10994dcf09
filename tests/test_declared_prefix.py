"""data.shared_prefix: a text that every prompt begins with, in tokens as the prompts are, or one clear line."""

from __future__ import annotations

import json

import pytest
import torch
from memory_of_runs import composed
from test_hybrids import target_of
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import specdec
from specdec.alignment.inplace import InplaceAlignment
from specdec.config.identity import identity, input_names
from specdec.config.reference import baseline_run, reference_run
from specdec.core.clock import Clock
from specdec.core.prompts import DataConfig, declared_tokens, load_prompts
from specdec.errors import ConfigError, SpecdecError
from specdec.models.pair import load_pair
from specdec.run.factory import build_engine

BEGINNING = "<s>"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Characters, "ab" as one token, and a beginning-of-text token before every text."""
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", BEGINNING]
    plain = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[("a", "b")]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.post_processor = processors.TemplateProcessing(
        single=f"{BEGINNING} $A", special_tokens=[(BEGINNING, len(alphabet) - 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=plain)


@pytest.fixture
def load(tmp_path, tokenizer):
    def call(prefix: bytes, *prompts, **settings):
        lines = [{"messages": prompt} if isinstance(prompt, list) else {"prompt": prompt} for prompt in prompts]
        (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
        (tmp_path / "prefix.txt").write_bytes(prefix)
        data = DataConfig("test", str(tmp_path / "data.jsonl"), shared_prefix=str(tmp_path / "prefix.txt"), **settings)
        found, notes = load_prompts(data, tokenizer, 100)
        tokens = declared_tokens(found)
        assert all(prompt.ids[: len(tokens)] == tokens for prompt in found if not prompt.turn)
        assert f"the first {len(tokens)} tokens of every prompt are held once" in notes[-1]
        return "".join(tokenizer.convert_ids_to_tokens(tokens)).replace("\u0120", " ").replace("\u010a", "\n")

    return call


def test_its_tokens_are_those_that_all_prompts_begin_with(load):
    assert load(b"Say:", "Say: a", "Say: b") == "<s>Say:"
    assert load(b"Say:\n", "Say: a", "Say:b") == "<s>Say:", "the line break that ends the file is none of the text"
    assert load(b"Say:\n\n", "Say:\na", "Say:\nb") == "<s>Say:\n"
    assert load(b"Say a", "Say abc", "Say a") == "<s>Say ", "its last letter is joined with the next in one prompt"
    assert load(b"Say:", "Say: all", "Say: all") == "<s>Say:", "no more than was declared"
    assert load(b"Say:", "Say: a", "Say: b", prompt_tokens=3) == "<s>Sa", "prompts that are cut"


def test_with_a_chat_template_it_is_the_beginning_of_the_first_message(load, tokenizer):
    system = [[{"role": "system", "content": "Say:"}, {"role": "user", "content": text}] for text in ("x", "y")]
    tokenizer.chat_template = (
        "<s>{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}[/]{% endfor %}"
        "{% if messages[-1].role != 'user' %}{{ raise_exception('no user') }}{% endif %}"
    )
    try:
        assert load(b"Say:", "Say: a", "Say: b") == "<s>[u]Say:"
        assert load(b"Say:", *system) == "<s>[s]Say:[/][u]", "all of a system prompt, and what comes after it"
        assert load(b"Say:\nx", *system[:1], chat_template="never") == "<s>Say:\nx", "messages on lines"
        with pytest.raises(
            SpecdecError, match=r"question_id 1 does not begin with .*at character 5 .* the prompt ends"
        ):
            load(b"Say:\nx", *system[:1])
    finally:
        tokenizer.chat_template = None


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (b"", r"data.shared_prefix=.*prefix.txt: the file is empty"),
        (b"\n", r"data.shared_prefix=.*prefix.txt: the file is empty"),
        (b"Say\xe9", r"data.shared_prefix=.*prefix.txt: line 1: byte 0xe9 at position 4 is not UTF-8"),
        (
            b"Say: a",
            r"question_id 2 does not begin with .*txt: at character 6 the file has 'a', and the prompt 'b'; co",
        ),
        (b"Say: a and more", r"question_id 1 does not .* character 7 the file has ' and more', and the prompt ends"),
    ],
)
def test_a_text_that_is_none_is_refused_in_one_line(load, prefix, message):
    with pytest.raises(SpecdecError, match=message) as refused:
        load(prefix, "Say: a", "Say: b")
    assert "\n" not in str(refused.value)


def test_a_file_that_is_missing_is_refused(tokenizer):
    with pytest.raises(SpecdecError, match=r"^data.shared_prefix=/no/such: no such file$"):
        load_prompts(DataConfig("test", "asset:nothing.jsonl", shared_prefix="/no/such"), tokenizer, 100)


def test_what_cannot_hold_it_is_refused_before_anything_is_loaded():
    with pytest.raises(ConfigError, match=r"data.shared_prefix=x: alignment=eqspec holds .* set alignment=inplace, or"):
        composed("pair=tiny", "alignment=eqspec", "data.shared_prefix=x")
    with pytest.raises(ConfigError, match=r"^data.shared_prefix: Lfm2ForCausalLM has .* set data.shared_prefix=null"):
        InplaceAlignment(target_of("Lfm2"), Clock()).declare([1])


@pytest.mark.slow
def test_target_and_draft_hold_it_but_no_draft_with_a_tokenizer_of_its_own(monkeypatch):
    held = []
    monkeypatch.setattr(InplaceAlignment, "declare", lambda self, tokens: held.append((self.model, tokens)))
    settings = ("pair=tiny", "alignment=inplace", "data.shared_prefix=x")
    pair = load_pair(composed(*settings))
    pair.draft_tokenizer = pair.tokenizer
    for drafter, readers in (("model", [pair.draft, pair.target]), ("retokenize", [pair.target])):
        build_engine(composed(*settings, f"drafter={drafter}"), pair, Clock(), first_tokens=[5, 6])
        assert {(id(model), *tokens) for model, tokens in held} == {(id(model), 5, 6) for model in readers}
        held.clear()
    with pytest.raises(
        ConfigError, match=r"^data.shared_prefix=x: drafter=medusa reads .* set data.shared_prefix=null$"
    ):
        build_engine(composed(*settings, "drafter=medusa", "drafter.untrained=true"), pair, Clock())


def test_it_names_a_run_and_its_baseline_and_no_reference():
    plain, shared = (composed("pair=tiny", "alignment=inplace", *more) for more in ([], ["data.shared_prefix=/a/b"]))
    assert identity(shared) != identity(plain)
    assert "shared_prefix" not in identity(plain)["data"]
    assert input_names(shared)["data.shared_prefix"] == "/a/b"
    assert baseline_run(shared).data.shared_prefix == "/a/b"
    assert reference_run(shared).data.shared_prefix is None


def test_a_library_call_names_its_own_setting():
    hybrid = target_of("Lfm2").module
    with pytest.raises(ConfigError, match=r"^shared_prefix=8: Lfm2ForCausalLM has .*: set shared_prefix=0$"):
        specdec.generate(hybrid, None, torch.tensor([[1, 2]]), shared_prefix=8)
