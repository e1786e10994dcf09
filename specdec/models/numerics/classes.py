"""Classes of shapes: the sizes at which this machine's kernels compute a row in the same order, so with the same bits.

A kernel chooses how it sums by the shape that it gets: one row or several, a width that its blocks divide or not. Sizes
at which it makes the same choices form a class; a forward padded into one class has bits that depend on no neighbour.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import asdict, dataclass

from specdec.errors import PairError


@dataclass(frozen=True, slots=True)
class Tile:
    """Queries of one attention: ``size`` places from ``start`` on, of which all see at most ``width`` columns."""

    start: int
    size: int
    width: int


@dataclass(frozen=True, slots=True)
class Classes:
    """The sizes that forwards of one model are padded to; each was measured. All ascend."""

    rows: tuple[int, ...]  # tokens of a forward, M: rows of its matrix products
    queries: tuple[int, ...]  # tokens of a row that attend in one call
    widths: tuple[int, ...]  # columns that they attend to

    def num_rows(self, count: int) -> int:
        """The smallest size of the class for ``count`` tokens, which are no more than the largest."""
        return self.rows[bisect_left(self.rows, count)]

    def width(self, count: int) -> int:
        """The same for columns.

        Raises:
            PairError: a row is longer than what was measured.
        """
        place = bisect_left(self.widths, count)
        if place == len(self.widths):
            raise PairError(
                f"numerics=invariant was measured for rows of up to {self.widths[-1]} columns and {count} are needed: "
                "choose shorter prompts, a smaller max_new_tokens, or numerics=default"
            )
        return self.widths[place]

    def tiles(self, seen: list[int]) -> list[Tile]:
        """Cut queries into tiles of the class; place i sees at most ``seen[i]`` columns."""
        tiles, start = list[Tile](), 0
        while start < len(seen):
            left = len(seen) - start
            size = self.queries[min(bisect_left(self.queries, left), len(self.queries) - 1)]
            tiles.append(Tile(start, size, self.width(max(seen[start : start + size]))))
            start += size
        return tiles

    def described(self) -> dict[str, list[int]]:
        """As plain data, for files."""
        return {name: list(sizes) for name, sizes in asdict(self).items()}
