"""Draft vocabularies: a head that can draft only some of the target's tokens.

Its law is that of its own softmax: the tokens that it cannot draft have probability 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.errors import ConfigError
from specdec.heads.weights import Head


class DraftVocabulary:
    """The target's ids of a head's tokens: ``d2t`` holds their offsets."""

    def __init__(self, head: Head, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._ids_N: Tensor | None = None
        offsets_N, drafted_V = head.tensors.get("d2t"), head.tensors.get("t2d")
        if offsets_N is None or head.spec.draft_vocab_size is None:
            return
        ids_N = torch.arange(len(offsets_N), device=offsets_N.device) + offsets_N.long()
        if int(ids_N.min()) < 0 or int(ids_N.max()) >= vocab_size or len(ids_N.unique()) < len(ids_N):
            raise ConfigError(
                f"drafter.path={head.spec.name}: d2t does not name {len(ids_N)} different tokens of the target's "
                f"{vocab_size}"
            )
        if drafted_V is not None and not bool(drafted_V.bool()[ids_N].all() & (drafted_V.sum() == len(ids_N))):
            raise ConfigError(f"drafter.path={head.spec.name}: d2t and t2d name different tokens")
        self._ids_N = ids_N

    def full(self, logits: Tensor) -> Tensor:
        """(..., N) to (..., V): -inf for tokens that cannot be drafted."""
        if self._ids_N is None:
            return logits
        whole = logits.new_full((*logits.shape[:-1], self._vocab_size), -torch.inf)
        return whole.index_copy_(-1, self._ids_N, logits)
