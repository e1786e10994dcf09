"""Batches of token blocks from long arrays, which are mapped from disk.

Shapes: B rows, T tokens, K kept entries of a distribution, V vocabulary, L layers, D hidden
size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from specdec.training import TrainingError
from specdec.training.budget import Budget
from specdec.training.records import PART
from specdec.training.shares import Mixture

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
    hidden_BTLD: Tensor | None = None  # the target's hidden states of some layers, if they were kept
    layers: tuple[int, ...] = ()  # which ones; the last stands for its output

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
        counts_V = np.zeros(vocab_size, np.int64)
        for start in range(0, len(self.tokens), PART):
            part = self.tokens[start : start + PART]
            counted = slice(None) if self.counted is None else self.counted[start : start + PART]
            counts_V += np.bincount(part[counted], minlength=vocab_size)
        return torch.from_numpy(counts_V)

    def row(self, block: int, number: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The tokens of a row, and which of them count."""
        start = self._start(block, number)
        ids_T = self.tokens[start : start + block].astype(np.int64)
        if self.counted is None:
            return ids_T, np.ones(block, np.bool_)
        return ids_T, self.counted[start : start + block]

    def draw(self) -> Batch:
        phase = self.budget.phase_at(self.place["batches"] / self.budget.stage.accumulate)
        key = f"rows of {phase.block}"
        first, count = self.place.get(key, 0), phase.batch * self.num_devices
        rows = [self.row(phase.block, number) for number in range(first, first + count)]
        self.place = {**self.place, key: first + count, "batches": self.place["batches"] + 1}
        ids_BT, counted_BT = (torch.from_numpy(np.stack(parts)) for parts in zip(*rows, strict=True))
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


class MixedBlocks(BlockStream):
    """Rows of several streams of blocks, each as often as its share asks for."""

    def __init__(self, streams: list[BlockStream], shares: list[float], budget: Budget, seed: int) -> None:
        super().__init__(streams[0].tokens, budget, seed)
        self.streams, self.shares, self._mixture = streams, shares, Mixture(shares)

    def token_counts(self, vocab_size: int) -> Tensor:
        """As often as they are drawn: for every token of the first stream."""
        rates = [share / len(part.tokens) for part, share in zip(self.streams, self.shares, strict=True)]
        counts = [
            part.token_counts(vocab_size) * (rate / rates[0]) for part, rate in zip(self.streams, rates, strict=True)
        ]
        return torch.stack(counts).sum(0)

    def row(self, block: int, number: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        part, own = self._mixture(number)
        return self.streams[part].row(block, own)


def fixed_blocks(tokens: NDArray[Any], block: int, num_blocks: int) -> Tensor:
    """Evenly spaced blocks for evaluation: input_ids_BT."""
    block = min(block, len(tokens))
    starts = np.linspace(0, len(tokens) - block, num_blocks).astype(int)
    return torch.from_numpy(np.stack([tokens[start : start + block] for start in starts]).astype(np.int64))
