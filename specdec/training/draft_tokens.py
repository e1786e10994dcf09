"""Heads that can draft only some of the target's tokens: which ones, and what such a head learns.

A head over N tokens learns the target's distribution among these, at places where the target's choice and the text's
own token are among them; at others it cannot be right. Source: Li et al. 2025, arXiv 2503.01840 (EAGLE-3).
Shape letters: X positions (any leading shape), V vocabulary, N tokens that can be drafted, D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from specdec.training.config import LossConfig
from specdec.training.losses import weighted_losses


def most_frequent(counts_V: Tensor, size: int) -> Tensor:
    """(size) ids of the most frequent tokens, in their own order; of equally frequent ones the lower ids."""
    return counts_V.argsort(descending=True, stable=True)[:size].sort().values


class DraftTokens(nn.Module):
    """A head's tokens, all of the target's until ``keep`` is called. The buffers have the names of `speculators`."""

    d2t: Tensor | None  # (N) what is to be added to a draft's id to get the target's
    t2d: Tensor | None  # (V) bool

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("d2t", None)
        self.register_buffer("t2d", None)

    def keep(self, ids_N: Tensor, vocab_size: int) -> None:
        """Draft these tokens alone; their ids are in ascending order."""
        self.d2t = ids_N - torch.arange(len(ids_N), device=ids_N.device)
        self.t2d = torch.zeros(vocab_size, dtype=torch.bool, device=ids_N.device).index_fill_(0, ids_N, True)

    @property
    def ids(self) -> Tensor | None:
        """(N) the target's ids; None: all of them."""
        return None if self.d2t is None else self.d2t + torch.arange(len(self.d2t), device=self.d2t.device)

    def of(self, x_XV: Tensor) -> Tensor:
        """(X, N): what is theirs."""
        return x_XV if self.ids is None else x_XV[..., self.ids]

    def losses(
        self, cfg: LossConfig, draft_XN: Tensor, target_XV: Tensor, tokens_X: Tensor, counted_X: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The losses of all positions (X), and which of them count (X): those where the head can be right."""
        if self.t2d is None:
            return weighted_losses(cfg, draft_XN, target_XV, tokens_X), counted_X
        places_X, known_X = self.places(tokens_X)
        counted_X = counted_X & known_X & self.t2d[target_XV.argmax(-1)]
        return weighted_losses(cfg, draft_XN, self.of(target_XV), places_X), counted_X

    def places(self, tokens_X: Tensor) -> tuple[Tensor, Tensor]:
        """Where tokens stand among theirs (X), 0 if they do not; and whether they do (X)."""
        if self.t2d is None:
            return tokens_X, torch.ones_like(tokens_X, dtype=torch.bool)
        return (self.t2d.cumsum(0) - 1)[tokens_X].clamp(min=0), self.t2d[tokens_X]


class ReducibleHead(nn.Module):
    """A head of logits of its own, over the tokens that it can draft.

    A class that inherits from it has ``lm_head``, over all tokens until ``keep``; None: it uses the target's.
    """

    lm_head: nn.Linear | None

    def __init__(self) -> None:
        super().__init__()
        self.tokens = DraftTokens()

    def keep(self, ids_N: Tensor, target: Any) -> None:
        """Draft these tokens alone: the rows of a head of logits that are theirs, the target's where it had none."""
        source = self.lm_head or target.get_output_embeddings()
        self.lm_head = nn.Linear(source.in_features, len(ids_N), bias=False)
        with torch.no_grad():
            self.lm_head.weight.copy_(source.weight[ids_N])
        self.tokens.keep(ids_N, source.out_features)
