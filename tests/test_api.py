"""The library API: the same tokens as transformers' own generate on each row alone, and one clear error otherwise."""

from __future__ import annotations

import pytest
import torch
from cases import short_only
from conftest import perturbed, small_llama
from library_models import EOS, FAMILIES, NEW, VOCAB, alone, block, build, laid_out, ragged
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    TextIteratorStreamer,
)

import specdec
from specdec.assets import resolve
from specdec.core.sampling_params import SamplingParams
from specdec.engine.options import read_options
from specdec.errors import ConfigError, DataError

ROLES = ("target", "draft")


@pytest.fixture(scope="module")
def draft(llama):
    return perturbed(llama, 0.04)


@pytest.fixture(scope="module")
def words():
    """A tokenizer of one word per id, which pads on the left."""
    plain = Tokenizer(models.WordLevel({f"w{i:02}": i for i in range(VOCAB)}, unk_token="w00"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="w03", eos_token=f"w{EOS:02}", padding_side="left")


@pytest.fixture(scope="module")
def tiny():
    """The built-in pair, as a user of transformers loads it."""
    models = [AutoModelForCausalLM.from_pretrained(resolve(f"asset:tiny/{role}"), dtype="float32") for role in ROLES]
    return *models, AutoTokenizer.from_pretrained(resolve("asset:tiny/tokenizer"))


@pytest.mark.parametrize("family", short_only(FAMILIES, ci=["GPT2"]))
def test_64_ragged_prompts_are_what_each_row_says_alone(family):
    target = build(family)
    draft, rows = perturbed(target, 0.04), ragged(64)
    settings = {"max_new_tokens": NEW, "do_sample": False}
    news = [alone(target, row, **settings) for row in rows]
    assert len({tuple(new) for new in news}) > 30, "an oracle that always says the same is worth nothing"
    assert {len(new) < NEW for new in news} == {True, False}, "some rows meet the end-of-text token, others do not"
    engine = specdec.Engine(target, draft, gamma=4)
    for side in ("left", "right"):
        ids, mask = block(rows, side)
        output = engine.generate(ids, attention_mask=mask, return_dict_in_generate=True, **settings)
        assert torch.equal(output.sequences, laid_out(ids, news)), side
        assert 0.2 < output.acceptance_rate < 1, "partly accepted, so the rows fall out of step"
    with pytest.raises(ValueError, match="batch_size = 1"):  # transformers' own assisted generation
        target.generate(ids, attention_mask=mask, assistant_model=draft, **settings)


def test_left_padded_output_has_the_layout_of_transformers(llama, draft):
    ids, mask = block(ragged(9), "left")
    theirs = llama.generate(ids, attention_mask=mask, max_new_tokens=NEW)
    assert torch.equal(specdec.generate(llama, draft, ids, attention_mask=mask, max_new_tokens=NEW), theirs)
    inputs = {"input_ids": ids, "attention_mask": mask}
    assert torch.equal(specdec.generate(llama, draft, inputs, max_new_tokens=NEW, batch=2), theirs)
    assert torch.equal(specdec.generate(llama, draft, **inputs, max_new_tokens=NEW), theirs)


def test_padding_is_known_by_the_mask_alone(llama, draft):
    """Whatever id fills the padding, and although the padding id stands in prompts."""
    rows = ragged(6)
    outputs = []
    for filler in (EOS, 0, 17):
        ids, mask = block(rows, "right", filler)
        output = specdec.generate(llama, draft, ids, attention_mask=mask.bool(), max_new_tokens=NEW)
        outputs.append(output[:, ids.shape[1] :])
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    with pytest.warns(UserWarning, match="every token counts as real"):
        specdec.generate(llama, draft, block(rows, "left")[0], max_new_tokens=2)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"max_length": 30}, marks=pytest.mark.slow),
        {"eos_token_id": None, "max_new_tokens": 9},
        {"eos_token_id": [EOS, 7, 11], "max_new_tokens": 20},
        {"repetition_penalty": 1.3, "max_new_tokens": 20},
        {"generation_config": GenerationConfig(max_new_tokens=6, eos_token_id=7, pad_token_id=2)},
        {"generation_config": GenerationConfig(max_new_tokens=6), "max_new_tokens": 3},
        {"do_sample": True, "top_k": 1, "max_new_tokens": 9},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Passing `generation_config` together:FutureWarning")  # it is what is compared
def test_settings_mean_what_they_mean_in_transformers(llama, draft, settings):
    rows = [row for row in ragged(12) if len(row) < 25]
    news = [alone(llama, row, **settings) for row in rows]
    output = specdec.generate(llama, draft, rows, return_dict_in_generate=True, **settings)
    width = max(map(len, rows))
    for b, new in enumerate(news):
        assert output.sequences[b, width : width + len(new)].tolist() == new
        assert output.num_new_tokens[b] == len(new)


def test_the_targets_own_generation_config_is_followed(draft):
    target = build("Llama")
    row = ragged(3)[2]
    expected = alone(target, row, max_new_tokens=4)
    target.generation_config.update(max_new_tokens=4, temperature=0.6, top_p=0.9, cache_implementation="hybrid")
    target.generation_config.chat_format = "chatml"  # Hub files hold such fields, which transformers never reads
    assert specdec.generate(target, draft, [row], do_sample=False).tolist() == [row + expected]
    target.generation_config.suppress_tokens = expected[:1]
    other = alone(target, row, do_sample=False, max_new_tokens=4)
    assert specdec.generate(target, draft, [row], do_sample=False).tolist() == [row + other] != [row + expected]
    target.generation_config.typical_p = 0.5
    with pytest.raises(ConfigError, match=r"typical_p=0\.5 is not supported"):
        specdec.generate(target, draft, [row])


def test_texts(llama, draft, words):
    rows = ragged(5, longest=9)
    texts = [" ".join(f"w{token:02}" for token in row) for row in rows]
    output = specdec.generate(llama, draft, texts, max_new_tokens=NEW, tokenizer=words, return_dict_in_generate=True)
    news = [alone(llama, row, max_new_tokens=NEW) for row in rows]
    assert torch.equal(output.sequences, laid_out(block(rows, "left")[0], news))
    assert output.texts == [words.decode(new, skip_special_tokens=True) for new in news]
    inputs = words(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    same = specdec.generate(llama, draft, inputs, max_new_tokens=NEW)
    assert torch.equal(same[:, -NEW:], output.sequences[:, -NEW:])
    assert torch.equal(same[:, :-NEW], inputs["input_ids"]), "the block of prompts stays as it was given"
    one = specdec.generate(llama, draft, texts[2], max_new_tokens=NEW, tokenizer=words)
    assert one.tolist() == [rows[2] + news[2]]


def test_stop_strings(tiny):
    target, draft, tokenizer = tiny
    texts = ["import os\n", "\n\ndef f(x):\n    return", "class A:", "import unittest\nfrom test.", "x = '"]
    rows = tokenizer(texts)["input_ids"]
    # One is completed by the first new token behind "os\n", one stands in a prompt, one cuts through tokens.
    settings = {"max_new_tokens": 24, "stop_strings": ["\n\n", "nit__(se"], "tokenizer": tokenizer}
    output = specdec.generate(target, draft, rows, return_dict_in_generate=True, **settings)
    width = max(map(len, rows))
    for b, row in enumerate(rows):
        new = alone(target, row, **settings)
        assert output.sequences[b, width : width + len(new)].tolist() == new
        assert output.num_new_tokens[b] == len(new)
    assert {"stop_string", "length"} <= set(output.stop_reasons)


def test_streamers_one_per_row(llama, draft, words):
    rows = ragged(3, longest=6)
    streamers = [TextIteratorStreamer(words, skip_prompt=True, timeout=1) for _ in rows]
    specdec.generate(llama, draft, rows, max_new_tokens=NEW, streamer=streamers)
    for row, streamer in zip(rows, streamers, strict=True):
        theirs = TextIteratorStreamer(words, skip_prompt=True, timeout=1)
        llama.generate(torch.tensor([row]), max_new_tokens=NEW, streamer=theirs)
        assert list(streamer) == list(theirs)
    with pytest.raises(ConfigError, match="streamer: 1 for 3 rows"):
        specdec.generate(llama, draft, rows, streamer=streamers[0])


def test_sampling_is_repeatable_and_knows_no_neighbours(llama, draft):
    rows = ragged(6)
    settings = {
        "do_sample": True,
        "temperature": 0.8,
        "top_p": 0.9,
        "max_new_tokens": NEW,
        "return_dict_in_generate": True,
    }
    engine = specdec.Engine(llama, draft, gamma=4)
    first = engine.generate(rows, seed=3, **settings)
    assert torch.equal(first.sequences, engine.generate(rows, seed=3, batch=2, **settings).sequences)
    assert not torch.equal(first.sequences, engine.generate(rows, seed=4, **settings).sequences)
    torch.manual_seed(5)
    drawn = engine.generate(rows, **settings).sequences
    torch.manual_seed(5)
    assert torch.equal(engine.generate(rows, **settings).sequences, drawn), "torch's seed decides where none is given"
    width = max(map(len, rows))
    seeds = engine.generate(rows[:2], seed=[3, 9], **settings).sequences
    num = first.num_new_tokens[0]
    assert seeds[0, -seeds.shape[1] + max(map(len, rows[:2])) :][:num].tolist() == (
        first.sequences[0, width : width + num].tolist()
    )
    assert first.num_drafted != [0] * 6


def test_sampling_defaults_are_those_of_transformers():
    def sampling(own=None, passed=None, **keywords):
        return read_options(own, passed, {"do_sample": True, **keywords}).sampling

    assert sampling() == SamplingParams(temperature=1.0, top_k=50)
    assert sampling(top_k=None) == sampling(top_k=0) == SamplingParams(temperature=1.0)
    own = GenerationConfig(temperature=0.6, top_p=0.9, top_k=20)
    assert sampling(own) == SamplingParams(0.6, 20, 0.9)
    assert sampling(own, GenerationConfig(top_p=0.5), temperature=0.7) == SamplingParams(0.7, 20, 0.5)


def test_a_draft_of_another_tokenizer_is_joined_by_text(tiny):
    target, draft, tokenizer = tiny
    texts = ["import os\n", "class A:"]
    settings = {"max_new_tokens": 12, "return_dict_in_generate": True}
    output = specdec.generate(target, draft, texts, tokenizer=tokenizer, draft_tokenizer=tokenizer, **settings)
    plain = specdec.generate(target, None, texts, tokenizer=tokenizer, **settings)
    assert torch.equal(output.sequences, plain.sequences)
    assert output.acceptance_rate > 0.3
    assert (plain.acceptance_rate, plain.mean_acceptance_length) == (0, 1)


def test_a_target_may_name_its_decoder_start_and_a_forced_first_token():
    """XGLM's own configuration does: neither decides a token after a prompt of two tokens or more."""
    target = small_llama(0, torch.float32)
    target.generation_config = GenerationConfig(decoder_start_token_id=2, forced_bos_token_id=5, pad_token_id=0)
    prompts = [[3, 9, 4], [8, 1]]
    outputs = specdec.generate(target, None, prompts, max_new_tokens=8)
    for row, prompt in enumerate(prompts):
        alone = target.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=8)
        assert outputs[row, 3:].tolist() == alone[0, len(prompt) :].tolist()
    with pytest.raises(DataError, match=r"row 1: after a prompt of one token .* forces token 5"):
        specdec.generate(target, None, [[3, 9], [4]], max_new_tokens=8)
