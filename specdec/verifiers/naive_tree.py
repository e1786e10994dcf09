"""NaiveTree: the first candidate of a node is tested, and the token that replaces it may be one of the others.

Rule: accept the first candidate x with probability min(1, p(x) / q(x)), otherwise draw from norm((p - q)+); descend if
the token is among the children. Only the first child need be drawn from q, so siblings without replacement and beams
are judged as well as independent draws. Source: arXiv 2602.16994, section 3.
"""

from __future__ import annotations

from torch import Tensor

from specdec.core.siblings import BEAM, CHAIN, IID, WITHOUT_REPLACEMENT
from specdec.verifiers.multiround import multi_round
from specdec.verifiers.walk import Site, WalkVerifier


class NaiveTreeVerifier(WalkVerifier):
    """Lossless; with one candidate per node it is rejection."""

    judges = (CHAIN, IID, WITHOUT_REPLACEMENT, BEAM)

    def emit(self, site: Site) -> Tensor:
        return multi_round(site, num_tested=1)
