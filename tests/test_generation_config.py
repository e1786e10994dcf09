"""Every field of a GenerationConfig of `transformers`: the same tokens as there, row by row, or refused by its name."""

from __future__ import annotations

import re
from inspect import signature

import pytest
import torch
from conftest import perturbed
from library_models import EOS, build
from test_processors import OPTIONS
from transformers import GenerationConfig

import specdec
from specdec.engine.option_names import NEUTRAL, PROCESSING, SUPPORTED, WITH_DO_SAMPLE
from specdec.errors import ConfigError

FIELDS = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
FOLLOWED = {*SUPPORTED, *WITH_DO_SAMPLE, "transformers_version"} & FIELDS
SILENT = {"remove_invalid_values": True, "renormalize_logits": True, "bos_token_id": 3, "transformers_version": "5.0"}
"""Values of supported fields that change nothing about greedy rows."""
ACTING = {"cache_implementation": "static", "early_stopping": "never", "use_cache": False, "top_k": 5}


@pytest.fixture(scope="module")
def engine():
    target = build("Llama")
    return specdec.Engine(target, perturbed(target, 0.04), gamma=3)


def both_ways(settings):
    """As keywords, and as a GenerationConfig, which is not validated: its constructor refuses some values."""
    config = GenerationConfig()
    for name, value in settings.items():
        setattr(config, name, value)
    return settings, {"generation_config": config}


def test_processing_fields_are_compared_with_generate():
    """tests/test_processors.py gives each of them a value that changes the rows."""
    compared = {name for settings in OPTIONS.values() for name in settings}
    assert {*PROCESSING} - {"remove_invalid_values", "renormalize_logits"} <= compared


def test_values_without_effect_are_accepted(engine):
    ids = torch.tensor([[7, 8, 9], [EOS, 2, 3]])
    expected = engine.generate(ids, max_new_tokens=6)
    off = dict.fromkeys(FIELDS - FOLLOWED - {"use_cache"}, False)
    for silent in (off, NEUTRAL | {name: values[0] for name, values in WITH_DO_SAMPLE.items()} | SILENT):
        for way in both_ways({**silent, "max_new_tokens": 6}):
            assert torch.equal(engine.generate(ids, **way), expected)


@pytest.mark.parametrize("name", sorted((FIELDS - FOLLOWED) | {*WITH_DO_SAMPLE}))
def test_values_with_an_effect_are_refused_by_name(engine, name):
    for way in both_ways({name: ACTING.get(name, 0.5)}):
        with pytest.raises(ConfigError, match=rf"^{name}=") as caught:
            engine.generate([[1, 2]], **way)
        assert "\n" not in str(caught.value)


def test_an_error_lists_all_options(engine):
    with pytest.raises(ConfigError) as caught:
        engine.generate([[1, 2]], no_such_option=1)
    own = {*signature(specdec.generate).parameters, *signature(specdec.Engine.generate).parameters}
    own -= {"self", "target", "draft", "call", "settings"}
    assert {*SUPPORTED, *own} <= set(re.findall(r"\w+", str(caught.value).partition("choose")[2]))
    with pytest.raises(ConfigError, match="gamma belongs to an Engine's making"):
        engine.generate([[1, 2]], gamma=3)
