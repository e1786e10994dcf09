"""Samples of a target by torch's own generator, for the audit."""

from __future__ import annotations

import torch

from specdec.core.sampling import processed
from specdec.core.sampling_params import SamplingParams
from specdec.models.causal_lm import CausalLM

PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7, 9], [2]]
SETTINGS = {
    "plain": SamplingParams(temperature=1.0),
    "cool": SamplingParams(temperature=0.7, top_k=8),
    "nucleus": SamplingParams(temperature=0.9, top_p=0.8),
}


@torch.inference_mode()
def samples(model: CausalLM, params: SamplingParams, num_rows: int, num_tokens: int, seed: int) -> list[list[int]]:
    """Rows of tokens drawn from the target's law by torch's own generator; every prompt is one of PROMPTS[0]."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.tensor([PROMPTS[0]] * num_rows)
    for _ in range(num_tokens):
        law = processed(model.module(tokens).logits[:, -1:], [params] * num_rows)[:, 0]
        tokens = torch.cat([tokens, torch.multinomial(law, 1, generator=generator)], 1)
    return tokens[:, len(PROMPTS[0]) :].tolist()
