"""Log-likelihoods of continuations by the target alone, in batches: speculation has no part in them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.models.causal_lm import CausalLM

Pair = tuple[list[int], list[int]]
"""Ids of a context and of its continuation."""
Score = tuple[float, bool]
"""Log-probability of a continuation, and whether greedy decoding would emit it."""


@torch.inference_mode()
def continuation_scores(model: CausalLM, pairs: Sequence[Pair], batch: int, max_length: int) -> list[Score]:
    """The scores of the continuations.

    Args:
        batch: rows per forward, longest first. max_length: most tokens of a row; of longer ones the end is kept.
    """
    rows = [_cut(pair, max_length) for pair in pairs]
    order = sorted((at for at, (_, num) in enumerate(rows) if num), key=lambda at: -len(rows[at][0]))
    found: dict[int, Score] = {at: (0.0, True) for at, (_, num) in enumerate(rows) if not num}  # nothing to score
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        found |= dict(zip(places, _scores(model, [rows[at] for at in places]), strict=True))
    return [found[at] for at in range(len(rows))]


def _cut(pair: Pair, max_length: int) -> tuple[list[int], int]:
    """One row of at most max_length + 1 tokens, of which the last is not fed, and how many of them are scored."""
    context, continuation = pair
    ids = (context + continuation)[-(max_length + 1) :]
    return ids, min(len(continuation), len(ids) - 1)


def _scores(model: CausalLM, rows: Sequence[tuple[list[int], int]]) -> list[Score]:
    """One forward over rows padded on the right, which no real token sees."""
    width = max(len(ids) for ids, _ in rows)
    padded = [(ids[:-1] + [0] * (width - len(ids)), [1] * (len(ids) - 1) + [0] * (width - len(ids))) for ids, _ in rows]
    tokens_BT, mask_BT = (torch.tensor(part, device=model.device) for part in zip(*padded, strict=True))
    logits_BTV: Tensor = model.module(tokens_BT, attention_mask=mask_BT, use_cache=False).logits
    found = []
    for (ids, num), logits_TV in zip(rows, logits_BTV, strict=True):
        last = len(ids) - 1
        scored_NV = logits_TV[last - num : last].float()
        wanted_N = torch.tensor(ids[last + 1 - num :], device=model.device)
        logprobs_N = scored_NV.log_softmax(-1).gather(-1, wanted_N[:, None]).squeeze(-1)
        found.append(torch.stack([logprobs_N.double().sum(), (scored_NV.argmax(-1) == wanted_N).all().double()]))
    return [(score, bool(greedy)) for score, greedy in torch.stack(found).tolist()]
