"""The Alignment contract: one model, its KV cache, and rows that advance unevenly.

An alignment knows nothing of drafting or acceptance. Its caller names rows by integers, feeds tokens, and says which
to keep. Shape letters: B rows, T tokens fed per row, V vocabulary, N = 2 x layers (keys and values), H key/value
heads, D head size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from specdec.core.clock import Clock

if TYPE_CHECKING:
    from torch import Tensor

    from specdec.models.causal_lm import CausalLM

__all__ = ["Alignment", "CausalLM", "Clock", "Kept"]

Kept = int | list[int]
"""What a commit keeps of a row: its new number of tokens, or the fed nodes (in path order) of a tree."""


def __getattr__(name: str) -> object:
    """Re-export `CausalLM` for plug-ins without importing torch here."""
    if name != "CausalLM":
        raise AttributeError(f"module 'specdec.alignment.base' has no attribute {name!r}")
    from specdec.models.causal_lm import CausalLM

    return CausalLM


class Alignment(ABC):
    """Promises for every row, after any interleaving of these calls:

    - the position of token j is j;
    - a query sees exactly its row's own committed tokens and its own ancestors among the tokens fed since;
    - the KV content equals that of a fresh forward over the row's tokens alone (up to rounding).

    Lengths are explicit: no token id has a special meaning. A plug-in's constructor gets the model (`CausalLM`) and the
    run's `Clock` by position, and its settings by keyword.
    """

    model: CausalLM
    """The model whose KV cache it owns."""

    @classmethod
    def peak_rows(cls, in_flight: int, batch: int, num_fed: int) -> float:
        """Whole rows of KV that may exist at once, copies included, for the prediction of memory.

        By default all rows, and a second copy of a batch during a rebuild.

        Args:
            in_flight: rows admitted. batch: rows of a forward, at most. num_fed: tokens fed between two commits.
        """
        return in_flight + batch

    @classmethod
    def fed_rows(cls, in_flight: int, batch: int) -> int:
        """Rows of one forward, at most, including rows that the strategy adds, for the prediction of memory.

        By default the rows that the caller names.
        """
        return batch

    def expect(self, num_rows: int) -> None:  # noqa: B027 (optional)
        """Optimisation hint: ``num_rows`` new rows are about to be admitted, in one or more calls."""

    @abstractmethod
    def admit(self, rows: list[int], contents: list[list[int]]) -> None:
        """Add new rows and prefill their tokens (an empty content is allowed)."""

    @abstractmethod
    def release(self, rows: list[int]) -> None:
        """Drop rows and free their memory."""

    @abstractmethod
    def forward(
        self,
        rows: list[int],
        tokens_BT: Tensor,
        num_tokens: list[int] | None = None,
        parents: list[list[int]] | None = None,
    ) -> Tensor:
        """Feed tokens after each row's content.

        Args:
            rows: admitted rows, any subset in any order.
            tokens_BT: (B, T) token ids on the model's device. Row b's tokens are the first ``num_tokens[b]``; those
                after them are never fed, whatever their ids.
            num_tokens: tokens fed per row, 0 to T; all T by default.
            parents: per row and fed token, the index of its parent among the row's nodes (the tokens fed since its
                last commit, counted from 0 over several forwards), or -1 for the last committed token. By default
                each token follows the one fed before it: a chain.

        Returns:
            Logits (B, T, V); those past ``num_tokens[b]`` are undefined.
        """

    @abstractmethod
    def commit(self, rows: list[int], kept: list[Kept]) -> None:
        """Keep part of each row and discard everything else fed since the last commit.

        ``kept[b]`` is the row's new number of tokens (it may cut back into committed content; the fed nodes that it
        keeps must be a chain), or a list of node indices that form a path from the last committed token.

        Raises:
            ContractError: more tokens are kept than the row holds, or the nodes are not a path.
        """

    @abstractmethod
    def length(self, row: int) -> int:
        """Committed tokens of a row."""

    @abstractmethod
    def content(self, row: int) -> Tensor:
        """A copy of a row's committed keys and values, (N, H, length, D), for checks."""
