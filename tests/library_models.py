"""Models and rows for tests of the library, and what transformers makes of each row alone."""

from __future__ import annotations

import random

import torch
import transformers

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
