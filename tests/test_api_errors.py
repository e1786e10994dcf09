"""The library API on bad input: one clear line each, before any model runs."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import VOCAB, perturbed, small_llama
from transformers import GenerationConfig

import specdec
from specdec.errors import ConfigError, DataError, PairError, SpecdecError
from specdec.models.causal_lm import CausalLM

CONTEXT = 256


@pytest.fixture(scope="module")
def llama():
    return small_llama(0, torch.float64, layers=1)


@pytest.fixture(scope="module")
def draft(llama):
    return perturbed(llama, 0.04)


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
    "output_attentions=True is not supported": {"output_attentions": True},
    "synced_gpus=True is not supported": {"synced_gpus": True},
    "assistant_model=object is not.*pass it as draft": {"assistant_model": object()},
    "num_assistant_tokens=3 is not.*set gamma=": {"num_assistant_tokens": 3},
    "inputs_embeds=Tensor is not.*token ids or texts": {"inputs_embeds": torch.zeros(1, 2, 8)},
    "generator is no option.*set seed=": {"generator": torch.Generator()},
    "messages is no option.*apply_chat_template": {"messages": []},
    "unknown option.*attention_mask.*gamma.*seed": {"no_such_option": 1},
    "use_cache=False is not": {"use_cache": False},
    "cache_implementation='static' is not": {"cache_implementation": "static"},
    "force_words_ids=list is not": {"force_words_ids": [[3]]},
    "unknown option of specdec.generate 'max_new_token'.*did you mean 'max_new_tokens'": {"max_new_token": 3},
    "unknown field of the GenerationConfig 'temprature'": {"generation_config": GenerationConfig(temprature=0.5)},
    "typical_p=0.5 is not": {"generation_config": GenerationConfig(typical_p=0.5)},
    "generation_config: a dict is no GenerationConfig": {"generation_config": {"max_new_tokens": 3}},
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
    "row 1: its prompt of 256 tokens fills the target's context of 256": [[1], LONG],
    "row 0: 250 prompt tokens and 9 new ones .max_new_tokens. exceed the target's context of 256: at most 6": [
        LONG[:250]
    ],
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
    short = small_llama(1, torch.float64, layers=1)
    short.config.max_position_embeddings = 64
    refused(
        DataError,
        "exceed the draft's context of 64: at most 60",
        lambda: specdec.generate(llama, short, [[1] * 4], max_new_tokens=61),
    )
    llama.generation_config.pad_token_id = None
    refused(ConfigError, "pad_token_id is not set", lambda: specdec.generate(llama, draft, [[1], [1, 2]]))
