"""Greedy verification: the longest match with the target's argmax, on a chain or a tree.

Rule: accept while a drafted token equals the target's argmax; the argmax at the first mismatch is the recovered
token, the one after full acceptance is the bonus. Source: Leviathan et al. 2023, the limit of temperature 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from specdec.core.round import Draft, Verdict
from specdec.core.sampling import argmax
from specdec.verifiers.base import Verifier, longest_match

if TYPE_CHECKING:
    from torch import Tensor


class GreedyVerifier(Verifier):
    """Exact for greedy decoding: each emitted token is the target's argmax, ties broken as in plain decoding."""

    def verify(self, draft: Draft, logits_BTV: Tensor) -> Verdict:
        return longest_match(draft, argmax(logits_BTV))
