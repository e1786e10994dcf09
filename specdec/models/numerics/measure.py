"""The classes of one model on this machine: random inputs through its own operations, compared by bits.

Single tokens: a row's result must be the same for every number of rows and at every place among them. Attention: a
query's result must be the same for every number of queries and every width, wherever the keys are. Both are compared
with an anchor, the largest size first; a class is what agrees with it.

16-bit results hide the order of sums that are kept in float32: one in ten thousand rounds otherwise. So the inputs of a
product cancel: the true sum is zero, and what comes out is rounding alone, which shows every change of order.
Shape letters: M rows, I inputs, O outputs, N sequences, L queries, W columns, H query heads, E head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.errors import ConfigError
from specdec.models.execution.invariant import Heads, Invariant, Operation
from specdec.models.execution.packed import attention, fold_mask
from specdec.models.numerics.classes import Classes

ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
QUERIES = (1, 2, 4, 8, 16, 32, 64)
WIDTHS = (32, 64, 96, 128, 192, 256, 384, 512, 640, 768, 896, 1024, 1280, 1536, 2048)
"""Sizes that are tried; longer contexts go on by doubling, and by one and a half."""
FEWEST = 8
"""A class must reach this many tokens per forward, or decoding would be slower than anybody can use."""
MAX_PRODUCTS = 8 << 30
"""Multiplications per measurement, about: the largest numbers of rows are not tried for large models."""
BLOCK, ANCHOR = 1024, 16
"""The anchor of attention: ANCHOR queries over whole BLOCKs of columns. Past one, few numbers of queries are tried."""
NUM_TRIED, GROUP = 16, 32
"""Calls per tried size and width, which begin at as many columns; columns that cancel together."""


@torch.inference_mode()
def measure(execution: Invariant, device: torch.device, dtype: torch.dtype, longest: int) -> Classes:
    """The classes of an execution, for rows of up to ``longest`` columns.

    Raises:
        ConfigError: an operation has no class; the message names it.
    """
    make = Noise(torch.Generator().manual_seed(0), device, dtype)
    queries, widths = _attention_classes(execution.heads(), make, longest)
    return Classes(_row_class(execution.operations(), make), queries, widths)


@dataclass(frozen=True, slots=True)
class Noise:
    """Random inputs."""

    generator: torch.Generator
    device: torch.device
    dtype: torch.dtype

    def plain(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """Independent normal numbers."""
        return (scale * torch.randn(shape, generator=self.generator)).to(self.device, dtype or self.dtype)

    def cancelling(self, left: tuple[int, ...], right: tuple[int, ...], scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """Two tensors whose products over their last dimension, of the same size, are zero but for rounding."""
        half, odd = divmod(left[-1], 2)
        a, b = (self.plain(*shape[:-1], half, scale=scale) for shape in (left, right))
        # Of different sizes, as sums of few alike 16-bit products are exact in float32.
        a = a * 0.5 ** torch.randint(0, 8, a.shape, generator=self.generator).to(self.device, self.dtype)
        rest_a, rest_b = (part.new_zeros(*part.shape[:-1], odd) for part in (a, b))
        order = torch.randperm(left[-1], generator=self.generator).to(self.device)
        return torch.cat([a, a, rest_a], -1)[..., order], torch.cat([b, -b, rest_b], -1)[..., order]


Tried = tuple[str, Callable[[Tensor], Tensor], Tensor]
"""Name, function and inputs (M, X) of an operation to be tried."""


def _tried(operation: Operation, count: int, make: Noise) -> list[Tried]:
    """An operation as it is tried: products with weights of our own, others in float32 too."""
    if operation.with_weight is not None:
        size = operation.shape[0]
        x_MI, weight_OI = make.cancelling((count, size), (operation.num_weights // size, size))
        return [(operation.name, operation.with_weight(weight_OI), x_MI)]
    tried = [(operation.name, operation.run, make.plain(count, *operation.shape))]
    if operation.in_float32 is not None and make.dtype.itemsize == 2:
        x_MX = make.plain(count, *operation.shape, dtype=torch.float32)
        tried.append((operation.name, operation.in_float32(), x_MX))
    return tried


def _row_class(operations: list[Operation], make: Noise) -> tuple[int, ...]:
    """The largest class of numbers of rows that all operations share."""
    products = sum(operation.num_weights for operation in operations)
    sizes = [size for size in ROWS if 3 * size * products <= MAX_PRODUCTS] or list(ROWS[:4])
    tried = [each for operation in operations for each in _tried(operation, sizes[-1], make)]
    blame, best = "", list[int]()
    for anchor in reversed(sizes):
        common = sizes
        for name, run, x_MX in tried:
            common = _agreeing(run, x_MX, anchor, common)
            if not common:
                blame = name
                break
        if common and common[-1] >= FEWEST:
            best = max(best, common, key=len)
        if 2 * len(best) >= len(sizes):
            break
    if not best:
        raise ConfigError(_no_class(blame, "numbers of rows"))
    return tuple(best)


def _agreeing(run: Callable[[Tensor], Tensor], x_MX: Tensor, anchor: int, sizes: list[int]) -> list[int]:
    """The sizes that give the anchor's bits, with rows from the start, the middle and the end of the input."""
    expected = _in_pieces(run, x_MX, anchor)
    found = []
    for size in sizes:
        starts = {0, (len(x_MX) - size) // 2 | 1 if size < len(x_MX) else 0, len(x_MX) - size}
        pieces = ((start, run(x_MX[start : start + size].clone())) for start in starts if start + size <= len(x_MX))
        if all(torch.equal(piece, expected[start : start + size]) for start, piece in pieces):
            found.append(size)
    shifted = _in_pieces(run, x_MX.roll(3, 0), anchor)
    return found if torch.equal(shifted, expected.roll(3, 0)) else []


def _in_pieces(run: Callable[[Tensor], Tensor], x_MX: Tensor, size: int) -> Tensor:
    """All rows in pieces of one size, of which the last may overlap the one before."""
    parts = [run(x_MX[start : start + size].clone()) for start in range(0, len(x_MX) - size + 1, size)]
    rest = len(x_MX) % size
    return torch.cat([*parts, run(x_MX[-size:].clone())[size - rest :]]) if rest else torch.cat(parts)


def _attention_classes(kinds: Sequence[Heads], make: Noise, longest: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Numbers of queries and widths with the same bits, for all kinds of attention."""
    tried = list(WIDTHS)
    while tried[-1] < longest:
        tried += [tried[-1] * 3 // 2, tried[-1] * 2]
    tried = tried[: next(i for i, width in enumerate(tried) if width >= min(longest, tried[-1])) + 1]
    queries, widths = list(QUERIES), tried
    for kind in kinds:
        trial = _Attention(kind, make, max(tried[-1], BLOCK))
        queries = [size for size in queries if trial.agrees(size, BLOCK)]
        if not queries:
            raise ConfigError(_no_class("attention", "numbers of queries"))
        ends = sorted({queries[0], queries[-1]})
        widths = [w for w in widths if all(trial.agrees(size, w) for size in (queries if w <= BLOCK else ends))]
    if not widths:
        raise ConfigError(_no_class("attention", "widths"))
    return tuple(queries), tuple(widths)


class _Attention:
    """One kind of attention over random keys and values, of which both cancel.

    A query sees whole groups of columns; within a group the values cancel, each with that of an equal key. Scores are
    differences of large numbers, so that rounding alone decides the probabilities.
    """

    def __init__(self, heads: Heads, make: Noise, longest: int) -> None:
        self._heads = heads
        scale = float(2.0 ** (25 if make.dtype == torch.float64 else 10))
        num_groups = -(-longest // GROUP)
        shapes = (longest, heads.queries, heads.key_size), (num_groups, heads.keys, GROUP // 2, heads.key_size)
        self._q_SHE, half_keys = make.cancelling(*shapes, scale=scale)
        half_values = make.plain(num_groups, heads.keys, GROUP // 2, heads.value_size)
        order = torch.randperm(GROUP, generator=make.generator).to(make.device)
        # In a storage with more columns, as they are in use; the anchor reads copies.
        self._keys, self._values = (
            torch.cat([part, sign * part], 2)[:, :, order].transpose(0, 1).flatten(1, 2)[None, :, :longest]
            for part, sign in ((half_keys, 1), (half_values, -1))
        )
        self._expected_SHE = self._q_SHE.new_zeros(longest, heads.queries, heads.value_size)
        self._known = [False] * longest

    def agrees(self, size: int, width: int) -> bool:
        """Whether calls of ``size`` queries over ``width`` columns have the anchor's bits, many at once and alone."""
        starts_N = torch.linspace(0, max(width - size, 0), min(NUM_TRIED, width // size)).long()
        for chosen_N in (starts_N, starts_N[-1:]):
            places_NL = chosen_N[:, None] + torch.arange(size)
            if len(chosen_N) and not torch.equal(self._run(places_NL, width), self._anchor(places_NL)):
                return False
        return True

    def _anchor(self, places_NL: Tensor) -> Tensor:
        """What the anchor gives for these queries: calls of one size, over whole blocks of columns."""
        missing = sorted({place // ANCHOR for place in places_NL.flatten().tolist() if not self._known[place]})
        for width in sorted({_blocks(ANCHOR * (block + 1)) for block in missing}):
            blocks = torch.tensor([block for block in missing if _blocks(ANCHOR * (block + 1)) == width])
            new_NL = blocks[:, None] * ANCHOR + torch.arange(ANCHOR)
            self._expected_SHE[new_NL.to(self._keys.device)] = self._run(new_NL, width, copied=True)
            for place in new_NL.flatten().tolist():
                self._known[place] = True
        return self._expected_SHE[places_NL.to(self._keys.device)]

    def _run(self, places_NL: Tensor, width: int, *, copied: bool = False) -> Tensor:
        keys, values = (part[:, :, :width] for part in (self._keys, self._values))
        if copied:
            keys, values = keys.clone(), values.clone()
        keys, values = (part.expand(len(places_NL), -1, -1, -1) for part in (keys, values))
        places_NL = places_NL.to(keys.device)
        seen_NLW = torch.arange(keys.shape[2], device=keys.device) < (places_NL[..., None] // GROUP + 1) * GROUP
        mask = fold_mask(seen_NLW, self._heads.queries // self._heads.keys, keys.dtype)
        return attention(self._q_SHE[places_NL], keys, values, mask, self._heads.scale)


def _blocks(width: int) -> int:
    return -(-width // BLOCK) * BLOCK


def _no_class(name: str, sizes: str) -> str:
    return (
        f"numerics=invariant: no {sizes} give the same bits for {name} on this machine; set numerics=default, or try "
        "runner.threads=1"
    )
