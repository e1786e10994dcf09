"""The nodes that are extended next, with the draft's distributions after them.

Shape letters: B rows, N nodes of a row (those after its ``counts`` hold nothing), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from specdec.core.random_numbers import DRAFT, uniforms
from specdec.core.sampling import processed, warped
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence
from specdec.core.transfer import to_device
from specdec.trees.base import RowShape

OFFSETS_PER_NUMBER = 1 << 16
"""Number n of a level of depth d has the offset d + n * this; so number 0 is that of a chain."""


class Workspace:
    """Memory for distributions, kept between rounds: a system takes long to hand out so much of it."""

    def __init__(self) -> None:
        self._flat: dict[int, Tensor] = {}

    def take(self, place: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """A float64 tensor of this shape that holds anything; one that was taken at this place before is void."""
        size, flat = prod(shape), self._flat.get(place)
        if flat is None or len(flat) < size:
            flat = self._flat[place] = torch.zeros(size, dtype=torch.float64, device=device)
        return flat[:size].view(shape)


@dataclass(slots=True)
class Frontier:
    """What a tree knows when it chooses the children of a level's nodes."""

    depth: int  # of these nodes; 0 is the last committed token
    rows: list[Sequence]
    settings: list[SamplingParams] | None  # None: all rows take the model's plain argmax
    scores_BNV: Tensor  # logits after the rows' repetition penalties
    real_BN: Tensor  # bool, on the device: which places hold a node
    state: dict[str, Tensor]  # (B, N, ...): what `Children.state` said of these nodes; empty at depth 0
    memory: Workspace = field(default_factory=Workspace)  # for the distributions
    shapes: list[RowShape] | None = None  # the rows' own; None: all have the tree's
    place: Callable[[], Tensor | None] = lambda: None  # where the draft keeps (B, N, V) distributions, if in one piece
    _probs_BNV: Tensor | None = field(default=None, init=False)

    @property
    def samples(self) -> bool:
        """Whether any row samples."""
        return self.settings is not None and not all(row.greedy for row in self.settings)

    @property
    def chooses(self) -> bool:
        """Whether any row is greedy."""
        return self.settings is None or any(row.greedy for row in self.settings)

    @property
    def greedy_B(self) -> Tensor:  # noqa: N802
        """(B) bool, on the device: rows whose children are chosen, not drawn."""
        greedy = [True] * len(self.rows) if self.settings is None else [row.greedy for row in self.settings]
        return to_device(greedy, self.scores_BNV.device)

    def probs(self) -> Tensor:
        """(B, N, V) float64: each row's distributions by its own settings; one-hot in greedy rows."""
        if self._probs_BNV is None:
            assert self.settings is not None
            out_BNV = self.place()
            if out_BNV is None:
                out_BNV = self.memory.take(0, tuple(self.scores_BNV.shape), self.scores_BNV.device)
            self._probs_BNV = processed(self.scores_BNV, self.settings, out_BNV)
        return self._probs_BNV

    @property
    def drawn_from(self) -> Tensor | None:
        """The distributions, if a tree has asked for them: then it has drawn."""
        return self._probs_BNV

    def log_probs(self) -> Tensor:
        """(B, N, V) float32: logarithms of the distributions; in greedy rows of the model's own, at temperature 1."""
        scores_BNV = self.scores_BNV.float()
        return (scores_BNV if self.settings is None else warped(scores_BNV, self.settings)).log_softmax(-1)

    def numbers(self, count: int) -> Tensor:
        """(B, count) float64 in [0, 1): each row's random numbers of this level. Number n is the same for any count."""
        keys = [(row.sampling.seed if row.sampling else 0, row.index) for row in self.rows]
        offsets = [self.depth + n * OFFSETS_PER_NUMBER for n in range(count)]
        found = uniforms(keys, [[row.length] for row in self.rows], DRAFT, offsets)
        return to_device(found, self.scores_BNV.device)


def by_place(values: Tensor, places_BN: Tensor) -> Tensor:
    """(B, N, ...): of values (B, C, ...) those at each row's places."""
    rows_B1 = torch.arange(len(places_BN), device=values.device)[:, None]
    return values[rows_B1, places_BN]
