"""The library API: the same tokens as transformers' own generate on each row alone, and one clear error otherwise."""

from __future__ import annotations

import random
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from conftest import perturbed, small_llama
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    TextIteratorStreamer,
)

import specdec
from specdec.api_models import choose_gamma
from specdec.assets import resolve
from specdec.errors import ConfigError, DataError, PairError, SpecdecError
from specdec.model import CausalLM

ROOT = Path(__file__).parent.parent
ROLES = ("target", "draft")
VOCAB, CONTEXT, NEW, EOS = 61, 128, 14, 5
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
FAMILIES = {
    "Llama": SIZES,
    "Qwen3": {**SIZES, "head_dim": 16},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT},
}


def build(family):
    sizes = {**FAMILIES[family], "vocab_size": VOCAB, "initializer_range": 0.25}
    config = getattr(transformers, f"{family}Config")(**sizes, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    torch.manual_seed(0)
    name = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    module = getattr(transformers, name)(config).to(torch.float64).eval()
    module.generation_config.eos_token_id = module.generation_config.pad_token_id = EOS  # pad == eos
    return module


def ragged(count, longest=40, seed=1):
    """Prompts in which the padding token, which is the end-of-text token too, occurs."""
    rng = random.Random(seed)
    rows = [[rng.randrange(VOCAB) for _ in range(rng.randint(1, longest))] for _ in range(count)]
    rows[1] = [EOS, *rows[1], EOS]
    return rows


def block(rows, side, filler=EOS):
    width = max(map(len, rows))
    pads = [width - len(row) for row in rows]
    left = side == "left"
    ids = [[filler] * n + row if left else row + [filler] * n for row, n in zip(rows, pads, strict=True)]
    mask = [[0] * n + [1] * len(row) if left else [1] * len(row) + [0] * n for row, n in zip(rows, pads, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


def alone(module, row, **settings):
    """transformers' own generate on one row; returns the new tokens."""
    ids = torch.tensor([row])
    return module.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(row) :].tolist()


def laid_out(ids, news):
    most = max(map(len, news))
    return torch.cat([ids, torch.tensor([new + [EOS] * (most - len(new)) for new in news])], dim=1)


@pytest.fixture(scope="module")
def llama():
    return build("Llama")


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


@pytest.mark.parametrize("family", FAMILIES)
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
        {"max_length": 30},
        {"eos_token_id": None, "max_new_tokens": 9},
        {"eos_token_id": [EOS, 7, 11], "max_new_tokens": 20},
        {"repetition_penalty": 1.3, "max_new_tokens": 20},
        {"generation_config": GenerationConfig(max_new_tokens=6, eos_token_id=7, pad_token_id=2)},
        {"generation_config": GenerationConfig(max_new_tokens=6), "max_new_tokens": 3},
        {"do_sample": True, "top_k": 1, "max_new_tokens": 9},
    ],
    ids=str,
)
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
    target.generation_config.update(max_new_tokens=4, temperature=0.6, top_p=0.9, cache_implementation="hybrid")
    target.generation_config.chat_format = "chatml"  # Hub files hold such fields, which transformers never reads
    row = ragged(3)[2]
    assert specdec.generate(target, draft, [row], do_sample=False)[0, len(row) :].tolist() == alone(
        llama_with(target, max_new_tokens=4), row
    )
    target.generation_config.no_repeat_ngram_size = 3
    with pytest.raises(ConfigError, match="no_repeat_ngram_size=3 is not supported"):
        specdec.generate(target, draft, [row])


def llama_with(module, **settings):
    module.generation_config = GenerationConfig(eos_token_id=EOS, pad_token_id=EOS, **settings)
    return module


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


def test_events_add_up_to_the_output_and_the_statistics(llama, draft):
    rows = ragged(7)
    engine = specdec.Engine(llama, draft, gamma=3)
    output = engine.generate(rows, max_new_tokens=NEW, return_dict_in_generate=True)
    events = list(engine.stream(rows, max_new_tokens=NEW))
    width = max(map(len, rows))
    for b in range(len(rows)):
        own = [event for event in events if event.row == b]
        tokens = [token for event in own for token in event.tokens]
        assert output.sequences[b, width : width + len(tokens)].tolist() == tokens
        assert output.num_new_tokens[b] == len(tokens)
        assert output.num_accepted[b] == sum(event.kinds.count("accepted") for event in own)
        assert output.num_drafted[b] == sum(event.num_drafted for event in own)
        assert output.accepted_lengths[b] == [event.num_accepted for event in own]
        assert output.num_verify_calls[b] == len(own)
        assert [event.stop_reason for event in own] == [None] * (len(own) - 1) + [output.stop_reasons[b]]
    kinds = {kind for event in events for kind in event.kinds}
    assert kinds == {"accepted", "recovered", "bonus"} or kinds == {"accepted", "recovered", "bonus", "plain"}
    assert output.acceptance_rate == sum(output.num_accepted) / sum(output.num_drafted)
    assert output.mean_acceptance_length == sum(output.num_new_tokens) / sum(output.num_verify_calls)
    assert torch.equal(output["sequences"], output[0]), "it is read like the outputs of transformers"
    assert isinstance(output, specdec.SpeculativeOutput)


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


def test_an_engine_keeps_its_caches_and_survives_an_abandoned_call(llama, draft):
    rows = ragged(6)
    engine = specdec.Engine(CausalLM(llama), draft)
    first = engine.generate(rows, max_new_tokens=NEW)
    [parts] = engine._idle
    abandoned = engine.stream(rows, max_new_tokens=NEW)
    next(abandoned)
    between = engine.generate(rows[::-1], max_new_tokens=NEW)
    list(abandoned)
    assert torch.equal(between.flip(0), first)
    abandoned = engine.stream(rows, max_new_tokens=NEW)
    next(abandoned)
    abandoned.close()
    assert torch.equal(engine.generate(rows, max_new_tokens=NEW), first)
    assert parts in engine._idle or len(engine._idle) == 1
    assert torch.equal(specdec.generate(llama, None, rows, max_new_tokens=NEW), first), "plain batched decoding"
    assert torch.equal(specdec.generate(llama, "prompt_lookup", rows, max_new_tokens=NEW), first)


def test_models_are_left_as_they_were(llama):
    draft = perturbed(llama, 0.04)
    draft.train()
    draft.model.layers[0].eval()
    before = [part.training for part in draft.modules()]
    engine = specdec.Engine(llama, draft)
    engine.generate(ragged(2), max_new_tokens=3)
    assert [part.training for part in draft.modules()] == before
    draft.float()
    with pytest.raises(PairError, match=r"from cpu, torch.float64 to cpu, torch.float32"):
        engine.generate(ragged(2), max_new_tokens=3)


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


def refused(error, match, call):
    with pytest.raises(error, match=match) as caught:
        call()
    assert isinstance(caught.value, SpecdecError)
    assert "\n" not in str(caught.value)


SETTINGS = {
    "temperature=-1": {"temperature": -1.0, "do_sample": True},
    "temperature=nan": {"temperature": float("nan"), "do_sample": True},
    "temperature=0 with do_sample": {"temperature": 0.0, "do_sample": True},
    "temperature=0.7 has no effect without do_sample": {"temperature": 0.7},
    "seed has no effect": {"seed": 3},
    "top_p=0.0": {"top_p": 0.0, "do_sample": True},
    "top_p=1.5": {"top_p": 1.5},
    "top_k=-1": {"top_k": -1, "do_sample": True},
    "min_p=2": {"min_p": 2.0, "do_sample": True},
    "repetition_penalty=0": {"repetition_penalty": 0.0},
    "max_new_tokens=0": {"max_new_tokens": 0},
    "max_new_tokens=3 and max_length=9 are both set": {"max_new_tokens": 3, "max_length": 9},
    "eos_token_id=-1": {"eos_token_id": -1},
    "stop_strings.*pass tokenizer=": {"stop_strings": "w1"},
    "num_beams=4 is not supported": {"num_beams": 4},
    "num_return_sequences=2 is not supported": {"num_return_sequences": 2},
    "output_scores=True is not supported": {"output_scores": True},
    "logits_processor=LogitsProcessorList is not": {"logits_processor": transformers.LogitsProcessorList()},
    "stopping_criteria=object is not": {"stopping_criteria": object()},
    "assistant_model=object is not": {"assistant_model": object()},
    "num_assistant_tokens=3 is not": {"num_assistant_tokens": 3},
    "use_cache=False is not": {"use_cache": False},
    "cache_implementation='static' is not": {"cache_implementation": "static"},
    "force_words_ids=list is not": {"force_words_ids": [[3]]},
    "unknown option of specdec.generate 'max_new_token'.*did you mean 'max_new_tokens'": {"max_new_token": 3},
    "unknown field of the GenerationConfig 'temprature'": {"generation_config": GenerationConfig(temprature=0.5)},
    "typical_p=0.5 is not": {"generation_config": GenerationConfig(typical_p=0.5)},
    "batch=0": {"batch": 0},
    "give the prompts once": {"input_ids": [[1]]},
}


@pytest.mark.parametrize("match", SETTINGS)
def test_settings_that_are_wrong_or_unsupported_are_named(llama, draft, match, monkeypatch):
    monkeypatch.setattr(CausalLM, "forward", None)  # nothing half done: no model may run
    engine = specdec.Engine(CausalLM(llama), CausalLM(draft))
    refused(ConfigError, match, lambda: engine.generate([[1, 2]], **SETTINGS[match]))
    refused(ConfigError, match, lambda: engine.stream([[1, 2]], **SETTINGS[match]))


LONG = [1] * CONTEXT
INPUTS = {
    "hold no row": [],
    "hold no row: ": torch.zeros(0, 4, dtype=torch.long),
    "row 1 has no real token": [[1], []],
    "row 0 has no real token": torch.zeros(2, 0, dtype=torch.long),
    "row 1: its prompt of 128 tokens fills the context of 128": [[1], LONG],
    "row 0: 120 prompt tokens and 9 new ones .max_new_tokens. exceed the context of 128: at most 8": [LONG[:120]],
    "row 0: token id 61 is outside": [[1, 61]],
    "give .rows, tokens. integers": torch.zeros(2, 3),
    "give .rows, tokens. integers ": torch.zeros(3, dtype=torch.long),
    "one list of token ids, or one text, per row": [1, 2],
    "inputs of type int": 3,
    "input_ids are missing": {"attention_mask": torch.ones(1, 1)},
}


@pytest.mark.parametrize("match", INPUTS)
def test_rows_that_cannot_be_continued_are_named(llama, draft, match, monkeypatch):
    monkeypatch.setattr(CausalLM, "forward", None)
    engine = specdec.Engine(CausalLM(llama), CausalLM(draft))
    refused(DataError, match.rstrip(), lambda: engine.generate(INPUTS[match], max_new_tokens=9))


def test_masks_that_do_not_fit_are_named(llama, draft):
    engine = specdec.Engine(CausalLM(llama), CausalLM(draft))
    ids = torch.ones(2, 3, dtype=torch.long)
    for mask, match in (
        (torch.tensor([[1, 1, 1], [0, 0, 0]]), "row 1 has no real token"),
        (torch.ones(2, 4), re.escape("shape (2, 4) does not fit input_ids of (2, 3)")),
        (torch.full((2, 3), 2), "other values mean nothing"),
    ):
        refused(DataError, match, lambda mask=mask: engine.generate(ids, attention_mask=mask))
    both = {"input_ids": ids, "attention_mask": torch.ones(2, 3)}
    refused(ConfigError, "given twice", lambda: engine.generate(both, attention_mask=torch.ones(2, 3)))
    both = {"input_ids": ids, "token_type_ids": ids}
    refused(ConfigError, "inputs hold token_type_ids", lambda: engine.generate(both))
    refused(ConfigError, "inputs are texts: pass tokenizer=", lambda: engine.generate(["w1"]))
    refused(ConfigError, "token_type_ids=Tensor is not supported", lambda: engine.generate(ids, token_type_ids=ids))


def test_pairs_that_do_not_fit_are_named(llama, draft):
    other = small_llama(1, torch.float64)
    other.resize_token_embeddings(VOCAB + 3)
    refused(PairError, "vocabulary sizes differ: target 61, draft 64", lambda: specdec.generate(llama, other, [[1]]))
    refused(PairError, "target: a str is no causal language model", lambda: specdec.generate("llama", draft, [[1]]))
    refused(ConfigError, "unknown drafter 'promt_lookup'", lambda: specdec.generate(llama, "promt_lookup", [[1]]))
    refused(ConfigError, "verifier=typical", lambda: specdec.generate(llama, draft, [[1]], verifier="typical"))
    refused(ConfigError, "gamma=-1", lambda: specdec.generate(llama, draft, [[1]], gamma=-1))
    plain = build("Llama")
    plain.generation_config.eos_token_id = plain.generation_config.pad_token_id = None
    refused(ConfigError, "pad_token_id is not set", lambda: specdec.generate(plain, draft, [[1], [1, 2]]))


def test_the_draft_length_follows_the_cost_of_the_draft():
    target = CausalLM(small_llama(0, torch.float32, layers=8))
    half, small = (CausalLM(small_llama(0, torch.float32, layers=layers)) for layers in (4, 1))
    assert choose_gamma(target, half) < choose_gamma(target, small) < choose_gamma(target, None)


def test_importing_the_package_imports_no_torch():
    script = "import sys, specdec; print('torch' in sys.modules, specdec.Engine.__module__)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.split() == ["False", "specdec.api"]
    with pytest.raises(AttributeError, match="no attribute 'genrate'"):
        specdec.genrate  # noqa: B018


def test_the_drop_in_script(capsys):
    scope = runpy.run_path(str(ROOT / "experiments" / "drop_in.py"))
    theirs = scope["target"].generate(**scope["inputs"], max_new_tokens=40)
    width = scope["inputs"]["input_ids"].shape[1]
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(*scope["inputs"].values(), strict=True)]
    assert [alone(scope["target"], row, max_new_tokens=40) for row in rows] == scope["outputs"][:, width:].tolist()
    assert theirs.shape == scope["outputs"].shape
    assert capsys.readouterr().out.count("---") == 3


def test_the_demo_without_a_terminal(capsys):
    from specdec import demo

    assert demo.main(["import os\n", "class A:", "--tokens", "12"]) == 0
    out = capsys.readouterr().out
    assert "--- 1 ---\nclass A:" in out
    assert "the same tokens" in out
    assert demo.main(["x", "--temperature", "-1"]) == 1
    assert capsys.readouterr().err.startswith("error: temperature=-1")
    started = (
        "import sys; sys.argv[1:] = ['--help']; from specdec import demo\n"
        "try: demo.main()\n"
        "finally: print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", started], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "--temperature" in result.stdout
    assert result.stdout.split()[-1] == "False"
