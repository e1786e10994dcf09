"""The target's distributions at the columns of a round, each computed when it is asked for.

A verifier that walks down a tree visits one node per depth; processing the scores of all nodes of a wide tree over a
large vocabulary would cost more than the walk. Shape letters: B rows, T columns, N chosen columns, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.core.sampling import processed
from specdec.core.sampling_params import SamplingParams


class TargetLaw:
    """Distributions (float64) from penalised scores and each row's settings, or ready ones (``TargetLaw.of``)."""

    def __init__(self, scores_BTV: Tensor, settings: list[SamplingParams]) -> None:
        self._scores_BTV = scores_BTV
        self._settings: list[SamplingParams] | None = settings

    @classmethod
    def of(cls, probs_BTV: Tensor) -> TargetLaw:
        """The law whose distributions are known."""
        law = cls(probs_BTV, [])
        law._settings = None
        return law

    @property
    def vocab_size(self) -> int:
        """V."""
        return self._scores_BTV.shape[-1]

    def at(self, columns_BN: Tensor) -> Tensor:
        """(B, N, V): each row's distributions at its own columns."""
        rows_B1 = torch.arange(len(columns_BN), device=columns_BN.device)[:, None]
        chosen_BNV = self._scores_BTV[rows_B1, columns_BN]
        return chosen_BNV if self._settings is None else processed(chosen_BNV, self._settings)

    def whole(self) -> Tensor:
        """(B, T, V): all of them."""
        return self._scores_BTV if self._settings is None else processed(self._scores_BTV, self._settings)
