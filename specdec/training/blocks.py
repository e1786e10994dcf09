"""Batches of contiguous blocks cut from one long token array. Shapes: B rows, T tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from specdec.training import TrainingError
from specdec.training.budget import Budget

if TYPE_CHECKING:
    from numpy.typing import NDArray


class BlockStream(IterableDataset[Tensor]):
    """Endless batches input_ids_BT of the length that the budget's phase asks for.

    Blocks are drawn without replacement: each pass shuffles the array's blocks anew and shifts their borders.
    """

    def __init__(self, tokens: NDArray[np.uint16], budget: Budget, seed: int) -> None:
        self.tokens, self.budget, self.seed = tokens, budget, seed
        longest = max(phase.block for phase in budget.stage.phases)
        if len(tokens) < 2 * longest:
            raise TrainingError(f"corpus has {len(tokens)} tokens, too few for phases with block={longest}")

    def __iter__(self) -> Iterator[Tensor]:
        starts: dict[int, Iterator[int]] = {}
        while True:
            phase = self.budget.phase
            source = starts.setdefault(phase.block, self._starts(phase.block))
            rows = [self._row(next(source), phase.block) for _ in range(phase.batch)]
            yield torch.stack(rows)

    def _row(self, start: int, block: int) -> Tensor:
        return torch.from_numpy(self.tokens[start : start + block].astype(np.int64))

    def _starts(self, block: int) -> Iterator[int]:
        # A resumed stage starts a pass of its own rather than the same blocks again.
        random = np.random.default_rng([self.seed, block, self.budget.step])
        while True:
            shift = int(random.integers(block))
            for index in random.permutation((len(self.tokens) - shift) // block):
                yield shift + int(index) * block


def fixed_blocks(tokens: NDArray[np.uint16], block: int, num_blocks: int) -> Tensor:
    """Evenly spaced blocks for evaluation: input_ids_BT."""
    block = min(block, len(tokens))
    starts = np.linspace(0, len(tokens) - block, num_blocks).astype(int)
    return torch.from_numpy(np.stack([tokens[start : start + block] for start in starts]).astype(np.int64))
