"""Small random models, and greedy decoding that shares no code with the engine."""

from __future__ import annotations

import copy
from functools import cache

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from specdec.conformance.cases import VOCAB
from specdec.model import CausalLM

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
@torch.inference_mode()
def greedy(seed: int, dtype: str, prompt: tuple[int, ...], max_new_tokens: int) -> tuple[int, ...]:
    """What the target says alone, token by token, without stops."""
    module = small_pair(seed, dtype)[0].module
    tokens, past, output = torch.tensor([prompt]), None, []
    for _ in range(max_new_tokens):
        step = module(tokens, past_key_values=past, use_cache=True)
        past = step.past_key_values
        tokens = step.logits[:, -1:].argmax(-1)
        output.append(int(tokens))
    return tuple(output)
