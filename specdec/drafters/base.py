"""The Drafter contract: proposes tokens (a chain or a tree) for the rows of a round. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from specdec.sequence import Sequence

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class Draft:
    """Proposed tokens of a round. B rows, G the largest number of nodes, V vocabulary."""

    tokens_BG: Tensor  # ids on the target's device; what stands behind num_drafted[b] means nothing
    num_drafted: list[int]  # nodes per row, 0 to G
    parents: list[list[int]] | None = None  # trees: parent node of each node, -1 for the last committed token
    probs_BGV: Tensor | None = None  # the law each token was really sampled from; None: tokens were chosen, not drawn

    def path(self, b: int, node: int) -> list[int]:
        """Row b's nodes from the first below the last committed token down to ``node``."""
        if self.parents is None:
            return list(range(node + 1))
        nodes = []
        while node != -1:
            nodes.append(node)
            node = self.parents[b][node]
        return nodes[::-1]


class Drafter(ABC):
    """Keeps whatever state it needs per row, between ``admit`` and ``release``.

    A row's draft must depend on that row alone: not on its neighbours, their number, or the order of calls.
    """

    max_length: int | None = None
    """Longest chain (or deepest tree) that it can draft; None means any."""

    @abstractmethod
    def admit(self, rows: list[Sequence]) -> None:
        """Take new rows in (their prompts are known, nothing is emitted yet)."""

    @abstractmethod
    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        """Draft up to ``gammas[b]`` tokens (0 allowed) after everything row b has committed."""

    @abstractmethod
    def commit(self, rows: list[Sequence]) -> None:
        """The rows' emitted tokens are final: drop what was drafted beyond them."""

    @abstractmethod
    def release(self, rows: list[Sequence]) -> None:
        """Forget rows."""
