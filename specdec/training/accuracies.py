"""How often each guess of heads and prompt tokens is right: what trees over ranked guesses are built from.

Measured on the target's own greedy outputs after held-out prompts, in which every token is a place that drafting may
start from. Shapes: B = 1 row, T tokens, G guessed places, K guesses per place, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from specdec.drafters.ranked_trees import NUM_RANKS
from specdec.models.causal_lm import CausalLM
from specdec.training.acceptance import HeldoutPrompt, rows_of
from specdec.training.config import ValidationConfig
from specdec.training.decoding import decode

Guesses = Callable[[Any, Any, Tensor, int], Tensor]
"""Logits (B, T - start, G, V) of a module beside a target: the g-th of token t are for token t + 2 + g."""


@torch.no_grad()
def measure_accuracies(
    guesses: Guesses, module: Any, target: CausalLM, prompts: list[HeldoutPrompt], cfg: ValidationConfig
) -> list[list[float]]:
    """By place and rank: the share of output tokens that were the guess of this rank for this place."""
    rows = rows_of(target, prompts, cfg.new_tokens)
    decode(target, rows, cfg.batch, execution="auto")
    num_right: Tensor | None = None
    num_guessed: Tensor | None = None
    for row in rows:
        ids_BT = torch.tensor([row.tokens(0)], device=target.device)
        start = max(len(row.prompt_ids) - 2, 0)  # from here the first output token is guessed
        top_TGK = guesses(module, target.module, ids_BT, start)[0].topk(NUM_RANKS, dim=-1).indices
        places_T1 = start + 2 + torch.arange(len(top_TGK), device=target.device)[:, None]
        places_TG = places_T1 + torch.arange(top_TGK.shape[1], device=target.device)
        known_TG = places_TG < ids_BT.shape[1]
        true_TG = ids_BT[0][places_TG.clamp(max=ids_BT.shape[1] - 1)]
        right_GK = ((top_TGK == true_TG[..., None]) & known_TG[..., None]).sum(0)
        num_right = right_GK if num_right is None else num_right + right_GK
        num_guessed = known_TG.sum(0) if num_guessed is None else num_guessed + known_TG.sum(0)
    assert num_right is not None
    assert num_guessed is not None
    shares_GK = num_right / num_guessed.clamp(min=1)[:, None]
    return [[round(share, 4) for share in shares] for shares in shares_GK.tolist()]
