"""Recursive rejection: multi-round rejection for siblings that were drawn without replacement.

Rule: test the children in drawing order; x passes with probability min(1, r(x) / Q(x)), where r = p and Q = q at first;
after a rejection r <- norm((r - Q)+) and Q <- norm(Q without x); after the last one draw from r. Children that cover
the vocabulary are accepted for certain. Independent draws are such siblings once repeats are merged in order of first
appearance; and a stochastic beam, because whether a sibling is kept depends on perturbed values that say nothing about
which token it is. Source: Jeon et al. 2024, arXiv 2402.14160 (RSD-C and RSD-S).
"""

from __future__ import annotations

from torch import Tensor

from specdec.core.siblings import BEAM, CHAIN, IID, WITHOUT_REPLACEMENT
from specdec.verifiers.multiround import multi_round
from specdec.verifiers.walk import Site, WalkVerifier


class RecursiveVerifier(WalkVerifier):
    """Lossless; with one child per node it is rejection."""

    judges = (CHAIN, IID, WITHOUT_REPLACEMENT, BEAM)

    repeats = False

    def emit(self, site: Site) -> Tensor:
        return multi_round(site, replacement=False)
