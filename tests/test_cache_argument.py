"""Models that call their cache by the old and by the new name, whichever the installed `transformers` uses itself."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from conftest import greedy_alone, perturbed, small_llama
from harness import make_engine, run_all
from torch import nn
from transformers import LlamaForCausalLM
from transformers.utils import logging

from experiments.tiny_pair.step_times import measure_step_s
from specdec.alignment.observation import fresh
from specdec.equivalence import rounding
from specdec.errors import PairError
from specdec.models.cache_argument import NAMES, cache_argument, returned_cache
from specdec.models.compatibility import supported
from specdec.training.objectives import sample


class Output:
    """A forward's result with the cache in a field of its own name."""

    def __init__(self, inner: Any, name: str) -> None:
        self.logits, self.hidden_states = inner.logits, inner.hidden_states
        setattr(self, name, returned_cache(inner))


class OldName(LlamaForCausalLM):
    """A forward as code that came with a checkpoint years ago has it, on the layers that are installed."""

    def forward(self, input_ids=None, past_key_values=None, **options: Any) -> Output:
        taken = cache_argument(self.model, past_key_values)
        return Output(super().forward(input_ids, **taken, **options), "past_key_values")


class NewName(LlamaForCausalLM):
    def forward(self, input_ids=None, cache=None, **options: Any) -> Output:
        return Output(super().forward(input_ids, **cache_argument(self.model, cache), **options), "cache")


KINDS = {"past_key_values": OldName, "cache": NewName}


def renamed(module: LlamaForCausalLM, name: str) -> LlamaForCausalLM:
    """The model with a forward that knows its cache by this name only."""
    module.__class__ = KINDS[name]
    return module


class Adapter(nn.Module):
    """Hands on whatever it is called with, as adapters and compiled models do."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.base_model = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model(*args, **kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_the_name_is_read_off_the_forward(name):
    module = renamed(small_llama(0, torch.float32), name)
    assert cache_argument(module, "the cache") == {name: "the cache"}
    assert cache_argument(Adapter(Adapter(module)), "the cache") == {name: "the cache"}
    assert returned_cache(module(torch.tensor([[1, 2]]), use_cache=True)).get_seq_length() == 2


def test_a_model_without_a_cache_is_refused():
    with pytest.raises(PairError, match="the forward of Linear takes neither cache nor past_key_values"):
        cache_argument(nn.Linear(2, 2), None)


@pytest.mark.parametrize("name", NAMES)
def test_models_of_either_name_decode_exactly(name, prompts):
    plain = small_llama(0, torch.float64)
    expected = [greedy_alone(supported(plain, "plain"), prompt, 12, frozenset()) for prompt in prompts[:5]]
    target = supported(renamed(plain, name), "target")
    draft = supported(renamed(perturbed(small_llama(0, torch.float64), 0.04), name), "draft")
    rows, _ = run_all(make_engine(target, draft, batch=3, scheduler="exspec"), prompts[:5], 12)
    assert [row.output_ids for row in rows] == expected


@pytest.mark.parametrize("name", [*NAMES, "own"])
def test_every_use_of_a_cache_takes_either_name_and_warns_of_nothing(name, prompts):
    """Beside the engine: the fresh forward of the checks, the rounding noise, step times, the draft's own samples."""
    module = small_llama(0, torch.float32)
    logits_TV = module(torch.tensor([prompts[1]])).logits[0]
    model = supported(module if name == "own" else renamed(module, name), name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(fresh(model, prompts[1])[0], logits_TV, atol=1e-4, rtol=1e-4)
        assert rounding.measure_rounding(model, prompts[1], prompts[2], 2, 3).largest < 1e-3
        assert measure_step_s(model.module, 1, 1, context=8) > 0
        rows_BT = sample(model.module, torch.tensor([prompts[1]]), 4, torch.Generator().manual_seed(0))
    assert rows_BT.shape == (1, len(prompts[1]) + 4)


def test_what_transformers_calls_deprecated_is_an_error_in_these_tests():
    """Warned of or only logged: conftest.py and pyproject.toml see to it, or the next renaming would go unnoticed."""
    with pytest.raises(FutureWarning, match="`one` is deprecated"):
        warnings.warn("`one` is deprecated", FutureWarning, stacklevel=1)
    with pytest.raises(FutureWarning, match="`other` is deprecated"):
        logging.get_logger("transformers.models").warning("`other` is deprecated! Use `that` instead!")
