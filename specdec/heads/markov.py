"""DSpark's sequential head: what a slot's logits get from the tokens before it.

The token before the slot has an embedding W1[token], of which W2 makes a bias for every token that can be drafted.
Variants gate the embedding by the slot's state, or keep a state of their own that runs along the block.
Source: arXiv 2607.05147 (DSpark); the variants as in `speculators`.
Shape letters: B rows, D the head's states, R rank, N tokens that can be drafted.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear

PLAIN, GATED, RECURRENT = "vanilla", "gated", "rnn"
_OWN = {PLAIN: None, GATED: "gate_proj", RECURRENT: "joint_proj"}


class MarkovHead:
    """Call it slot by slot, in order; ``restart`` begins the next block."""

    def __init__(self, tensors: Mapping[str, Tensor], variant: str) -> None:
        own = _OWN[variant]
        self._variant = variant
        self._w1_VR, self._w2_NR = (tensors[f"markov_head.markov_{part}.weight"] for part in ("w1", "w2"))
        self._own = None if own is None else [tensors[f"markov_head.{own}.{part}"] for part in ("weight", "bias")]
        self._memory_BR: Tensor | None = None

    def restart(self) -> None:
        """Forget the block."""
        self._memory_BR = None

    def __call__(self, before_B: Tensor, state_BD: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings (B, R) of the tokens before a slot, and the bias (B, N) of its logits."""
        before_BR = used_BR = embedding(before_B, self._w1_VR)
        if self._own is not None and self._variant == GATED:
            used_BR = before_BR * linear(torch.cat([state_BD, before_BR], dim=-1), *self._own).sigmoid()
        elif self._own is not None:
            memory_BR = torch.zeros_like(before_BR) if self._memory_BR is None else self._memory_BR
            parts_BX = linear(torch.cat([memory_BR, before_BR, state_BD], dim=-1), *self._own)
            gate_BR, candidate_BR, output_BR = parts_BX.chunk(3, dim=-1)
            self._memory_BR = memory_BR + (1 - gate_BR.sigmoid()) * (candidate_BR.tanh() - memory_BR)
            used_BR = output_BR.tanh()
        return before_BR, linear(used_BR, self._w2_NR)
