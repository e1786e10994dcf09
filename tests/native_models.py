"""Small models for the native execution, their logits at once and in steps, and weights of every format."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import torch
import transformers
from conftest import VOCAB
from families import SIZES, SPECIAL
from harness import ALIGNMENTS

from specdec.alignment.base import Alignment
from specdec.core.clock import Clock
from specdec.models.causal_lm import CausalLM

IDS = [[random.Random(length).randrange(VOCAB) for _ in range(length)] for length in (23, 60, 41)]
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "odd sizes": ("Llama", {"hidden_size": 36, "intermediate_size": 50, "vocab_size": 61, "head_dim": 18}),
    "wide": ("Llama", {"hidden_size": 320, "intermediate_size": 611, "head_dim": 80}),
    "qwen2 with biases": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "mistral, sliding": ("Mistral", {"sliding_window": 6}),
    "wide heads, sliding": ("Mistral", {"sliding_window": 6, "head_dim": 32}),
    "forty heads of one key head": (
        "Llama",
        {"hidden_size": 80, "num_attention_heads": 40, "num_key_value_heads": 1, "head_dim": 16},
    ),
    "one key head": ("Llama", {"num_key_value_heads": 1, "head_dim": 64}),
}


@cache
def build(shape: str) -> CausalLM:
    name, settings = SHAPES[shape]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **settings, **SPECIAL})
    module = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for weight_name, weight in module.named_parameters():
            if weight_name.endswith("bias"):
                weight.normal_()
    return CausalLM(module)


def whole(model: CausalLM, strategy: str, rows: list[list[int]], vocab: int) -> list[torch.Tensor]:
    """Logits of every token of each row, all fed at once."""
    alignment: Alignment = ALIGNMENTS[strategy](model, Clock())
    names = list(range(len(rows)))
    alignment.admit(names, [[] for _ in rows])
    width = max(map(len, rows))
    tokens_BT = torch.tensor([[token % vocab for token in row] + [0] * (width - len(row)) for row in rows])
    logits_BTV = alignment.forward(names, tokens_BT, [len(row) for row in rows])
    return [logits_BTV[b, : len(row)] for b, row in enumerate(rows)]


def in_steps(model: CausalLM, strategy: str, rows: list[list[int]], seed: int) -> tuple[list[torch.Tensor], list[int]]:
    """Logits from some token of each row on (which are returned too), in forwards of some rows in any order.

    Each feeds one to seven tokens of a row and up to two wrong ones, which are dropped again.
    """
    rng = random.Random(seed)
    alignment: Alignment = ALIGNMENTS[strategy](model, Clock())
    fed = [rng.randrange(len(row)) for row in rows]
    alignment.admit(list(range(len(rows))), [row[:n] for row, n in zip(rows, fed, strict=True)])
    parts: list[list[torch.Tensor]] = [[] for _ in rows]
    first = list(fed)
    while unfinished := [b for b, row in enumerate(rows) if fed[b] < len(row)]:
        chosen = rng.sample(unfinished, rng.randint(1, len(unfinished)))
        counts = [min(rng.randint(1, 7), len(rows[b]) - fed[b]) for b in chosen]
        in_vain = [rng.randint(0, 2) for _ in chosen]
        tokens = [
            [*rows[b][fed[b] : fed[b] + count], *([5] * wrong)]
            for b, count, wrong in zip(chosen, counts, in_vain, strict=True)
        ]
        width = max(map(len, tokens))
        tokens_BT = torch.tensor([part + [0] * (width - len(part)) for part in tokens])
        logits_BTV = alignment.forward(chosen, tokens_BT, [len(part) for part in tokens])
        for i, b in enumerate(chosen):
            parts[b].append(logits_BTV[i, : counts[i]])
            fed[b] += counts[i]
        alignment.commit(chosen, [fed[b] for b in chosen])
    return [torch.cat(part) if part else torch.empty(0) for part in parts], first


def quantised(kind: str, rows: int, inputs: int) -> torch.Tensor:
    """Random numbers of one format as float32; small ones, and a block of zeros, among them."""
    generator = torch.Generator().manual_seed(3)
    if kind in ("bfloat16", "float16"):
        numbers = torch.randn(rows, inputs, generator=generator) * 10 ** torch.randint(
            -7, 3, (rows, 1), generator=generator
        )
        return numbers.to(getattr(torch, kind)).float()
    scale = (torch.rand(rows, inputs // 32, 1, generator=generator) * 0.01).half().float()
    scale[0, 0] = 0
    if kind == "q8_0":
        q = torch.randint(-127, 128, (rows, inputs // 32, 32), generator=generator)
        q[..., 3] = 127
        q[0, 0] = 0
        return (scale * q).flatten(1)
    q = torch.randint(0, 16, (rows, inputs // 32, 32), generator=generator)
    q[..., 3], q[..., 17] = 0, 15
    minimum = (-torch.rand(rows, inputs // 32, 1, generator=generator) * 0.1).half().float()
    return (scale * q + minimum).flatten(1)
