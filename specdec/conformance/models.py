"""The small random models of the kit and of the tests, and plain decoding that shares no code with the engine."""

from __future__ import annotations

import copy
import string
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, TypeVar, cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BambaConfig, BambaForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from specdec.conformance.cases import STEP, VOCAB
from specdec.core.random_numbers import DRAW, uniforms
from specdec.models.cache_argument import cache_argument, returned_cache
from specdec.models.causal_lm import CausalLM
from specdec.models.small_copy import quiet

CONTEXT = 256
LETTERS = (string.ascii_letters + string.digits)[:VOCAB]
Model = TypeVar("Model", bound=torch.nn.Module)
_CPU = torch.device("cpu")
_DEVICE: ContextVar[torch.device] = ContextVar("_DEVICE")
_EXECUTION: ContextVar[str] = ContextVar("_EXECUTION", default="eager")


def device() -> torch.device:
    """Where the kit's models and tensors are."""
    return _DEVICE.get(_CPU)


@contextmanager
def on_device(place: torch.device, execution: str = "eager") -> Iterator[None]:
    """Make models and tensors of the block on this device; other executions than eager run all cases in float32."""
    tokens = _DEVICE.set(place), _EXECUTION.set(execution)
    try:
        yield
    finally:
        _DEVICE.reset(tokens[0])
        _EXECUTION.reset(tokens[1])


def small_llama(seed: int, dtype: torch.dtype, layers: int = 3, **settings: Any) -> LlamaForCausalLM:
    """A random Llama whose greedy outputs vary: wide initialisation, untied head; ``settings`` change its config."""
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.25,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,  # a padding token's embedding would be zero
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: Any = LlamaForCausalLM(LlamaConfig(**{**sizes, **settings}))
    return cast(LlamaForCausalLM, module.to(dtype).eval())


def perturbed(module: Model, scale: float, seed: int = 7) -> Model:
    """A copy with noise added to its weight matrices: a draft that agrees with its target some of the time."""
    twin = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in twin.parameters():
            if weight.dim() > 1:
                noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight.dtype)
                weight.add_(scale * weight.std() * noise)
    return twin


@cache
def small_hybrid(place: torch.device) -> CausalLM:
    """A random model of a Mamba 2 layer and an attention layer, in float32, which its scan computes in anyway."""
    settings: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "attn_layer_indices": [1],
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.25,
        **{f"mamba_{name}": 8 for name in ("n_heads", "d_head", "d_state", "chunk_size")},
        "mamba_n_groups": 1,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
    }
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        module: Any = BambaForCausalLM(BambaConfig(**settings))
    return CausalLM(module.to(place).eval())


def small_pair(seed: int, dtype: str) -> tuple[CausalLM, CausalLM]:
    """A small target, and a draft that often agrees with it."""
    execution = _EXECUTION.get()
    return _pair(seed, dtype if execution == "eager" else "float32", device(), execution)


@cache
def _pair(seed: int, dtype: str, place: torch.device, execution: str) -> tuple[CausalLM, CausalLM]:
    target = small_llama(seed, getattr(torch, dtype), layers=2)
    draft = perturbed(target, 0.04, seed + 100)
    for module in (target, draft):
        torch.nn.Module.to(module, place)
    models = CausalLM(target), CausalLM(draft)
    for model in models:
        model.execute(execution)
    return models


@cache
def tokenizers() -> tuple[Any, Any]:
    """The target's and the draft's, for drafters that work on text: the same letters, with ids in another order."""
    return letter_tokenizer(), letter_tokenizer([(STEP * i + 3) % VOCAB for i in range(VOCAB)])


def letter_tokenizer(ids: Sequence[int] = range(VOCAB)) -> Any:
    """One token per letter; ``ids[i]`` is the id of letter i."""
    tokenizer: Any = Tokenizer(models.WordLevel(dict(zip(LETTERS, ids, strict=True)), unk_token=LETTERS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def greedy(seed: int, dtype: str, prompt: tuple[int, ...], max_new_tokens: int) -> tuple[int, ...]:
    """The target's own greedy output, without stop tokens."""
    return _greedy(small_pair(seed, dtype)[0], prompt, max_new_tokens)


@cache
def _greedy(target: CausalLM, prompt: tuple[int, ...], max_new_tokens: int) -> tuple[int, ...]:
    return _plain(target, prompt, max_new_tokens, lambda logits_V, _: int(logits_V.argmax()))


def sampled(
    seed: int, dtype: str, prompt: tuple[int, ...], max_new_tokens: int, index: int, temperature: float
) -> tuple[int, ...]:
    """The target's own sampled output of a row with seed ``index``: each token by the random number of its position."""
    return _sampled(small_pair(seed, dtype)[0], prompt, max_new_tokens, index, temperature)


@cache
def _sampled(
    target: CausalLM, prompt: tuple[int, ...], max_new_tokens: int, index: int, temperature: float
) -> tuple[int, ...]:

    def choose(logits_V: torch.Tensor, position: int) -> int:
        cumulative_V = (logits_V.double() / temperature).softmax(-1).cumsum(-1)
        number = float(uniforms([(index, index)], [[position]], DRAW, [0]))
        return int((cumulative_V <= number).sum())

    return _plain(target, prompt, max_new_tokens, choose)


@torch.inference_mode()
def _plain(
    target: CausalLM, prompt: tuple[int, ...], max_new_tokens: int, choose: Callable[[torch.Tensor, int], int]
) -> tuple[int, ...]:
    module = target.module
    tokens, past = torch.tensor([prompt], device=target.device), None
    output: list[int] = []
    for _ in range(max_new_tokens):
        step = module(tokens, **cache_argument(module, past), use_cache=True)
        past = returned_cache(step)
        output.append(choose(step.logits[0, -1], len(prompt) + len(output)))
        tokens = torch.tensor([output[-1:]], device=target.device)
    return tuple(output)
