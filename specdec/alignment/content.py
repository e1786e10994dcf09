"""The tokens and nodes of each row: bookkeeping shared by all alignment strategies."""

from __future__ import annotations

from dataclasses import dataclass, field

from specdec.alignment.base import Kept
from specdec.errors import ContractError


@dataclass(slots=True)
class Content:
    """Number of committed tokens of one row, and the nodes fed since the last commit (a chain or a tree)."""

    length: int = 0
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)

    def feed(self, num_tokens: int, parents: list[int] | None) -> list[int]:
        """Add nodes; returns their positions (committed length + depth)."""
        start = len(self.parents)
        if parents is None:  # a chain, without a loop over its tokens
            depth = self.depths[-1] + 1 if self.depths else 0
            self.parents.extend(range(start - 1, start - 1 + num_tokens))
            self.depths.extend(range(depth, depth + num_tokens))
            return list(range(self.length + depth, self.length + depth + num_tokens))
        if len(parents) < num_tokens:
            raise ContractError(f"{num_tokens} tokens fed with {len(parents)} parents")
        for parent in parents[:num_tokens]:
            if not -1 <= parent < len(self.parents):
                raise ContractError(f"node {len(self.parents)} names parent {parent}, which was not fed before it")
            self.parents.append(parent)
            self.depths.append(0 if parent < 0 else self.depths[parent] + 1)
        return [self.length + depth for depth in self.depths[start:]]

    def is_chain(self) -> bool:
        """Whether every node's parent is the node fed before it."""
        return self.parents == list(range(-1, len(self.parents) - 1))

    def ancestors(self, node: int) -> list[int]:
        """The nodes that ``node`` may see: itself and its ancestors, nearest first."""
        path = []
        while node >= 0:
            path.append(node)
            node = self.parents[node]
        return path

    def keep(self, kept: Kept) -> tuple[int, list[int]]:
        """Commit; returns how many committed tokens stay, and the nodes appended to them, in order."""
        if isinstance(kept, int):
            num_nodes = max(kept - self.length, 0)
            nodes = list(range(num_nodes))
            stay = min(kept, self.length)
            if kept < 0 or num_nodes > len(self.parents):
                raise ContractError(
                    f"commit keeps {kept} tokens of a row that holds {self.length} and {len(self.parents)} nodes"
                )
        else:
            nodes, stay = list(kept), self.length
        previous = -1
        for node in nodes:
            if not 0 <= node < len(self.parents) or self.parents[node] != previous:
                raise ContractError(f"commit keeps nodes {nodes}, which are not a path of parents {self.parents}")
            previous = node
        self.length = stay + len(nodes)
        self.parents.clear()
        self.depths.clear()
        return stay, nodes


class Contents(dict[int, Content]):
    """The admitted rows of an alignment; calls that name other rows are errors."""

    def admit(self, rows: list[int]) -> None:
        """Add rows with empty content.

        Raises:
            ContractError: a row is admitted already, or named twice.
        """
        for row in rows:
            if row in self or rows.count(row) > 1:
                raise ContractError(f"row {row} is admitted twice")
        self.update((row, Content()) for row in rows)

    def release(self, rows: list[int]) -> None:
        """Drop rows."""
        self.require(rows, "release")
        for row in rows:
            del self[row]

    def feed(self, rows: list[int], num_tokens: list[int], parents: list[list[int]] | None) -> list[list[int]]:
        """Add each row's new nodes; returns their positions."""
        counted = enumerate(zip(rows, num_tokens, strict=True))
        return [self[row].feed(count, parents[b] if parents else None) for b, (row, count) in counted]

    def require(self, rows: list[int], call: str) -> None:
        """Refuse a call that names a row that is not admitted, or one row twice."""
        unknown = [row for row in rows if row not in self]
        if unknown:
            raise ContractError(f"{call} names rows {unknown}, which are not admitted")
        if len(set(rows)) < len(rows):
            raise ContractError(f"{call} names a row twice: {rows}")
