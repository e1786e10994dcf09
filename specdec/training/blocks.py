"""Batches of token blocks from one long array. Shapes: B rows, T tokens, K kept entries of a distribution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from specdec.training import TrainingError
from specdec.training.budget import Budget

if TYPE_CHECKING:
    from numpy.typing import NDArray

Place = dict[str, int]
"""The state of a stream: counts of what has been drawn from it."""


class Batch(NamedTuple):
    """Right-padded rows, and the stream's place after them.

    Every batch carries its place, so that a checkpoint never skips data that the loader has read but the model has not
    learned. A named tuple, because Lightning moves tuples between devices and refuses frozen dataclasses.
    """

    ids_BT: Tensor
    counted_BT: Tensor  # bool: the tokens that are to be predicted
    place: Place
    top_ids_BTK: Tensor | None = None  # the target's most probable tokens for each column, if they were kept
    top_logps_BTK: Tensor | None = None

    @property
    def first_counted(self) -> int:
        """The first column in which a token of any row counts; at least 1, as first tokens are never predicted."""
        columns = self.counted_BT.any(0).nonzero()
        return max(1, int(columns[0])) if len(columns) else self.counted_BT.shape[1] - 1


class Stream(IterableDataset[Batch]):
    """Endless batches, a pure function of seed and place; `share` selects the rows of one of several devices."""

    budget: Budget
    place: Place
    num_devices: int = 1
    share: slice = slice(None)

    def draw(self) -> Batch:
        """The next batch; advances the place."""
        raise NotImplementedError

    def token_counts(self, vocab_size: int) -> Tensor:
        """(V) how often each token is to be predicted in all the data."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Batch]:
        while True:
            batch = self.draw()
            is_spare = len(batch.ids_BT[self.share]) == 0  # fewer rows than devices: this one learns nothing from it
            rows = slice(1) if is_spare else self.share
            own: dict[str, Any] = {
                name: part[rows] for name, part in batch._asdict().items() if isinstance(part, Tensor)
            }
            if is_spare:
                own["counted_BT"] = torch.zeros_like(own["counted_BT"])
            yield batch._replace(**own)


class BlockStream(Stream):
    """Packed text: blocks of the length that the budget's phase asks for, across the borders of documents.

    Blocks are drawn without replacement: each pass shuffles the array's blocks again and shifts their borders.
    """

    def __init__(
        self, tokens: NDArray[Any], budget: Budget, seed: int, num_devices: int = 1, counted: NDArray[Any] | None = None
    ) -> None:
        """``counted``: which tokens are to be predicted; None: all."""
        self.tokens, self.budget, self.seed, self.num_devices = tokens, budget, seed, num_devices
        self.counted = counted
        self.place = {"batches": 0}
        self._pass: tuple[tuple[int, int], NDArray[np.int64]] | None = None
        longest = max(phase.block for phase in budget.stage.phases)
        if len(tokens) < 2 * longest:
            raise TrainingError(
                f"corpus has {len(tokens)} tokens, too few for phases with block={longest}: lower the blocks of "
                "fit.phases, or give more text"
            )

    def token_counts(self, vocab_size: int) -> Tensor:
        counted = self.tokens if self.counted is None else self.tokens[self.counted]
        return torch.from_numpy(np.bincount(counted, minlength=vocab_size))

    def draw(self) -> Batch:
        phase = self.budget.phase_at(self.place["batches"] / self.budget.stage.accumulate)
        key = f"rows of {phase.block}"
        first, count = self.place.get(key, 0), phase.batch * self.num_devices
        starts = [self._start(phase.block, row) for row in range(first, first + count)]
        rows = [torch.from_numpy(self.tokens[start : start + phase.block].astype(np.int64)) for start in starts]
        self.place = {**self.place, key: first + count, "batches": self.place["batches"] + 1}
        ids_BT = torch.stack(rows)
        counted_BT = torch.ones_like(ids_BT, dtype=torch.bool)
        if self.counted is not None:
            counted_BT = torch.from_numpy(np.stack([self.counted[start : start + phase.block] for start in starts]))
        counted_BT[:, 0] = False
        return Batch(ids_BT, counted_BT, self.place)

    def _start(self, block: int, row: int) -> int:
        """Where a row begins; the permutation of its pass follows from the seed."""
        number, index = divmod(row, len(self.tokens) // block - 1)
        if self._pass is None or self._pass[0] != (block, number):
            random = np.random.default_rng([self.seed, block, number])
            starts = random.integers(block) + block * random.permutation(len(self.tokens) // block - 1)
            self._pass = ((block, number), starts)
        return int(self._pass[1][index])


def fixed_blocks(tokens: NDArray[Any], block: int, num_blocks: int) -> Tensor:
    """Evenly spaced blocks for evaluation: input_ids_BT."""
    block = min(block, len(tokens))
    starts = np.linspace(0, len(tokens) - block, num_blocks).astype(int)
    return torch.from_numpy(np.stack([tokens[start : start + block] for start in starts]).astype(np.int64))
