"""Token ids beyond a vocabulary are refused at start, wherever they come from: tokenizers, stops, fillers, outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import VOCAB, small_llama
from hydra import compose, initialize_config_module
from test_drafters import context_of
from test_pair import save_tokenizer
from transformers import GenerationConfig

import specdec
import specdec.config
from specdec.alignment.dsd import DsdAlignment
from specdec.config.resolve import resolve
from specdec.conformance.models import letter_tokenizer
from specdec.core.clock import Clock
from specdec.core.sequence import Sequence
from specdec.drafters.retokenize import RetokenizeDrafter
from specdec.errors import ConfigError, DataError, PairError
from specdec.models import pair as pair_module
from specdec.models.causal_lm import CausalLM
from specdec.models.pair import load_pair
from specdec.registry import create
from specdec.run.factory import build_engine

SAME = list(range(VOCAB))


def with_a_token_more():
    """A tokenizer with a token that the model has no embedding of, and a text that it occurs in."""
    tokenizer = letter_tokenizer(SAME)
    tokenizer.add_tokens(["ab"])
    assert max(tokenizer.encode("abc")) == VOCAB
    return tokenizer


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM(small_llama(0, torch.float32))


@pytest.fixture(autouse=True)
def _fresh_cache():
    pair_module._cache.clear()


def composed(*overrides):
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        return resolve(compose(config_name="config", overrides=list(overrides)))


def refused(error, match, call):
    with pytest.raises(error, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


# --- the library ----------------------------------------------------------------------------------------------------


def test_a_tokenizer_that_is_larger_than_its_model_is_refused_by_the_library(model):
    draft = small_llama(1, torch.float32)
    for ours, theirs, whose in (
        (with_a_token_more(), letter_tokenizer(SAME), "target"),
        (letter_tokenizer(SAME), with_a_token_more(), "draft"),
    ):
        refused(
            PairError,
            f"the tokenizer has 62 tokens but the vocabulary of the {whose} is 61: 'ab' has id 61",
            lambda ours=ours, theirs=theirs: specdec.Engine(model, draft, tokenizer=ours, draft_tokenizer=theirs),
        )
        refused(
            PairError,
            f"the vocabulary of the {whose} is 61",
            lambda ours=ours, theirs=theirs: RetokenizeDrafter(
                context_of(model, CausalLM(draft), tokenizer=ours, draft_tokenizer=theirs)
            ),
        )
    refused(PairError, "has id 61", lambda: specdec.Engine(model, None, tokenizer=with_a_token_more()))


def test_a_tokenizer_that_fits_drafts_by_text(model):
    """The other side: what is refused above differs by one added token only."""
    draft = small_llama(0, torch.float32)
    engine = specdec.Engine(
        model, draft, tokenizer=letter_tokenizer(SAME), draft_tokenizer=letter_tokenizer(SAME), gamma=3
    )
    outputs = engine.generate(["abc"], max_new_tokens=8, eos_token_id=None, return_dict_in_generate=True)
    assert outputs.num_accepted[0] > 0


def test_a_tokenizer_without_a_draft_that_it_belongs_to_is_not_ignored(model):
    for draft in (None, "prompt_lookup"):
        refused(
            ConfigError,
            "draft_tokenizer is given without a draft model",
            lambda draft=draft: specdec.Engine(model, draft, draft_tokenizer=letter_tokenizer(SAME)),
        )


@pytest.mark.parametrize("stops", [VOCAB, [3, VOCAB + 9]])
def test_stop_tokens_that_the_target_cannot_emit_are_refused_by_the_library(model, stops):
    engine = specdec.Engine(model, None)
    refused(ConfigError, "eos_token_id: token id", lambda: engine.generate([[1, 2]], eos_token_id=stops))
    config = GenerationConfig(eos_token_id=stops)
    refused(ConfigError, "the target's vocabulary of 61", lambda: engine.generate([[1, 2]], config))


def test_the_targets_own_stop_token_is_its_own_matter():
    """A small GPT-2 names 50256 by default: no row ends by it, as with `transformers`."""
    module = small_llama(0, torch.float32)
    module.generation_config.eos_token_id = 50256
    engine = specdec.Engine(module, None)
    assert engine.generate([[1, 2]], max_new_tokens=3).shape == (1, 5)
    assert engine.generate([[1, 2]], module.generation_config, max_new_tokens=3).shape == (1, 5)
    assert engine.generate([[1, 2]], eos_token_id=[50256, 3], max_new_tokens=3).shape[0] == 1


def test_a_tokenizer_that_does_not_tell_its_vocabulary_is_held_against_the_prompts(model):
    class Letters:
        def __call__(self, texts):
            return {"input_ids": [[ord(letter) - ord("a") for letter in text] for text in texts]}

    engine = specdec.Engine(model, None, tokenizer=Letters())
    assert engine.generate(["abc"], max_new_tokens=3).shape == (1, 6)
    refused(DataError, "row 1: token id 62 is outside", lambda: engine.generate(["a", chr(ord("a") + 62)]))


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    """A local folder in Hub format whose tokenizer has the given words."""

    def make(name: str, words: list[str]) -> Path:
        folder = tmp_path / name
        small_llama(0, torch.float32).save_pretrained(folder)
        save_tokenizer(folder, words)
        return folder

    return make


WORDS = [f"w{i}" for i in range(VOCAB)]


@pytest.mark.parametrize("role", ["target", "draft"])
def test_a_tokenizer_that_is_larger_than_its_model_is_refused_by_a_run(checkpoint, role):
    folders = {name: checkpoint(name, WORDS + ["more"] * (name == role)) for name in ("target", "draft")}
    overrides = ["drafter=retokenize", "pair=vicuna", *(f"pair.{name}={folder}" for name, folder in folders.items())]
    refused(PairError, f"62 tokens but the vocabulary of the {role} is 61", lambda: load_pair(composed(*overrides)))


def test_the_draft_takes_the_targets_tokenizer_only_if_it_can_read_it(checkpoint):
    """Without a tokenizer of its own a random draft takes the target's, which may be too large for it."""
    target = checkpoint("target", WORDS)
    shape = json.loads((target / "config.json").read_text())
    shape = {key: shape[key] for key in ("model_type", "hidden_size", "num_attention_heads", "num_hidden_layers")}
    small = "{" + ",".join(f"{key}: {value}" for key, value in {**shape, "vocab_size": 40}.items()) + "}"
    overrides = ["drafter=retokenize", "pair=vicuna", "weights=random", f"pair.tokenizer={target}"]
    overrides += ["pair.num_layers=1", "pair.hidden_size=128", f"pair.draft_architecture={small}"]
    refused(PairError, "the vocabulary of the draft is 40", lambda: load_pair(composed(*overrides)))


def test_ids_need_not_be_as_many_as_the_largest_of_them(checkpoint):
    folder = checkpoint("target", WORDS[:9])
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["far"] = 200
    (folder / "tokenizer.json").write_text(json.dumps(content))
    overrides = ["pair=vicuna", f"pair.target={folder}", "pair.draft=null"]
    refused(
        PairError,
        "10 tokens but the vocabulary of the target is 61: 'far' has id 200",
        lambda: load_pair(composed(*overrides)),
    )


def test_num_ids_counts_added_tokens():
    from specdec.models.vocabulary import num_ids

    assert num_ids(letter_tokenizer(SAME)) == VOCAB
    assert num_ids(with_a_token_more()) == VOCAB + 1


@pytest.mark.slow
def test_stop_tokens_that_the_target_cannot_emit_are_refused_by_a_run(run):
    code, _, err = run("stop_tokens=[3,2048]", "data.num_prompts=2", "baseline=false")
    assert code == 1
    assert err.strip() == (
        "specdec: stop_tokens: token id 2048 is outside the target's vocabulary of 2048; give ids from 0 to 2047"
    )
    cfg = composed("stop_tokens=[-1]")
    refused(ConfigError, "stop_tokens: token id -1", lambda: build_engine(cfg, load_pair(cfg), Clock()))


# --- what plug-ins feed ---------------------------------------------------------------------------------------------


def test_what_plugins_feed_is_held_against_the_vocabulary(model, tmp_path):
    refused(ConfigError, "alignment.pad_id: token id 61", lambda: DsdAlignment(model, Clock(), pad_id=VOCAB))
    known = create("drafter", "scripted", context_of(model, known_output=lambda row: [1, VOCAB]))
    refused(ConfigError, "output of row 0: token id 61", lambda: known.admit([Sequence(0, [1], 3)]))
    (tmp_path / "corpus.txt").write_text("abc\n")
    context = context_of(model, tokenizer=with_a_token_more())
    refused(
        PairError, "'ab' has id 61", lambda: create("drafter", "trigram", context, corpus=str(tmp_path / "corpus.txt"))
    )
