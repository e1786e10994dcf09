"""Small random models, and plain decoding that shares no code with the engine."""

from __future__ import annotations

import copy
import string
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from specdec.conformance.cases import STEP, VOCAB
from specdec.core.random_numbers import DRAW, uniforms
from specdec.models.cache_argument import cache_argument, returned_cache
from specdec.models.causal_lm import CausalLM

CONTEXT = 256


@cache
def small_pair(seed: int, dtype: str) -> tuple[CausalLM, CausalLM]:
    """A target whose greedy outputs vary (wide initialisation, untied head), and a draft that often agrees with it."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.25,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,  # or its embedding would be zero, and the token no token
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        target = LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()
    draft = copy.deepcopy(target)
    generator = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        for weight in draft.parameters():
            if weight.dim() > 1:
                noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight.dtype)
                weight.add_(0.04 * weight.std() * noise)
    return CausalLM(target), CausalLM(draft)


@cache
def tokenizers() -> tuple[Any, Any]:
    """One token per letter, for the target and, in another order, for the draft: for drafters that go by the text."""
    return _letters(list(range(VOCAB))), _letters([(STEP * i + 3) % VOCAB for i in range(VOCAB)])


def _letters(ids: list[int]) -> Any:
    letters = (string.ascii_letters + string.digits)[:VOCAB]
    tokenizer: Any = Tokenizer(models.WordLevel(dict(zip(letters, ids, strict=True)), unk_token=letters[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@cache
def greedy(seed: int, dtype: str, prompt: tuple[int, ...], max_new_tokens: int) -> tuple[int, ...]:
    """What the target says alone, token by token, without stops."""
    return _plain(seed, dtype, prompt, max_new_tokens, lambda logits_V, _: int(logits_V.argmax()))


@cache
def sampled(
    seed: int, dtype: str, prompt: tuple[int, ...], max_new_tokens: int, index: int, temperature: float
) -> tuple[int, ...]:
    """What a row that samples with seed ``index`` says alone: each token by the random number of its position."""

    def choose(logits_V: torch.Tensor, position: int) -> int:
        cumulative_V = (logits_V.double() / temperature).softmax(-1).cumsum(-1)
        number = float(uniforms([(index, index)], [[position]], DRAW, [0]))
        return int((cumulative_V <= number).sum())

    return _plain(seed, dtype, prompt, max_new_tokens, choose)


@torch.inference_mode()
def _plain(
    seed: int, dtype: str, prompt: tuple[int, ...], max_new_tokens: int, choose: Callable[[torch.Tensor, int], int]
) -> tuple[int, ...]:
    module = small_pair(seed, dtype)[0].module
    tokens, past = torch.tensor([prompt]), None
    output: list[int] = []
    for _ in range(max_new_tokens):
        step = module(tokens, **cache_argument(module, past), use_cache=True)
        past = returned_cache(step)
        output.append(choose(step.logits[0, -1], len(prompt) + len(output)))
        tokens = torch.tensor([output[-1:]])
    return tuple(output)
