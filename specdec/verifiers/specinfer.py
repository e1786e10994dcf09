"""SpecInfer's multi-round rejection, for candidates that were drawn independently.

Rule: test the candidates in drawing order, repeats included; x passes with probability min(1, r(x) / q(x)), where r is
p at first and norm((r - q)+) after each rejection; after the last one draw from r. q stays the same vector, because
every candidate was drawn from it. Source: Miao et al. 2023, arXiv 2305.09781, algorithm 2.
"""

from __future__ import annotations

from torch import Tensor

from specdec.core.siblings import CHAIN, IID
from specdec.verifiers.multiround import multi_round
from specdec.verifiers.walk import Site, WalkVerifier


class SpecInferVerifier(WalkVerifier):
    """Lossless; with one candidate per node it is rejection."""

    judges = (CHAIN, IID)

    def emit(self, site: Site) -> Tensor:
        return multi_round(site)
