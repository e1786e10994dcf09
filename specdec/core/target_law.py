"""The target's distributions at the columns of a round, each computed when it is asked for.

A verifier that walks down a tree visits one node per depth; processing the scores of all nodes of a wide tree over a
large vocabulary would cost more than the walk. Shape letters: B rows, R some rows, T columns, N chosen columns, V
vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.core.sampling import processed
from specdec.core.sampling_params import SamplingParams
from specdec.core.transfer import to_device


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

    def at(self, columns_RN: Tensor, rows: list[int] | None = None) -> Tensor:
        """(R, N, V): the rows' distributions, each at its own columns; by default of all rows, in their order."""
        rows = list(range(len(columns_RN))) if rows is None else rows
        chosen_RNV = self._scores_BTV[to_device(rows, columns_RN.device, torch.long)[:, None], columns_RN]
        return chosen_RNV if self._settings is None else processed(chosen_RNV, [self._settings[b] for b in rows])

    def whole(self) -> Tensor:
        """(B, T, V): all of them."""
        return self._scores_BTV if self._settings is None else processed(self._scores_BTV, self._settings)
