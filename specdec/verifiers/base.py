"""The Verifier contract: a pure function of tensors, without model, cache or global random state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from specdec.drafters.base import Draft

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class Verdict:
    """Per row: the accepted nodes in path order, and the token after them (recovered or bonus)."""

    paths: list[list[int]]
    next_tokens: list[int]


class Verifier(ABC):
    """Decides a round. Pure, so that its law can be enumerated exactly in a test."""

    @abstractmethod
    def verify(self, draft: Draft, logits_BTV: Tensor, uniforms_BT: Tensor | None = None) -> Verdict:
        """Accept a prefix (or a path) of each row's draft.

        Args:
            draft: what was proposed; row b has ``num_drafted[b]`` nodes.
            logits_BTV: the target's logits, T = G + 1: column 0 after the last committed token, column g + 1 after
                drafted node g. Columns behind ``num_drafted[b] + 1`` mean nothing.
            uniforms_BT: each row's own random numbers in [0, 1), for verifiers that sample.
        """
