"""Greedy verification: the longest match with the target's argmax, on a chain or a tree.

Rule: accept while a drafted token equals the target's argmax; the argmax at the first mismatch is the recovered
token, the one after full acceptance is the bonus. Source: Leviathan et al. 2023, the limit of temperature 0.
"""

from __future__ import annotations

from specdec.verifiers.base import Verifier


class GreedyVerifier(Verifier):
    """Exact for greedy decoding: each emitted token is the target's argmax, ties broken as in plain decoding."""
