"""The Alignment contract: one model, its KV cache, and rows that advance unevenly.

An alignment knows nothing of drafting or acceptance. Its caller names rows by integers, feeds tokens, and says which
to keep. Shape letters: B rows, T tokens fed per row, V vocabulary, N = 2 x layers (keys and values), H key/value
heads, D head size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from specdec.core.clock import Clock

if TYPE_CHECKING:
    from torch import Tensor

    from specdec.models.causal_lm import CausalLM

__all__ = ["Admitted", "Alignment", "CausalLM", "Clock", "Kept"]

Kept = int | list[int]
"""What a commit keeps of a row: its new number of tokens, or the fed nodes (in path order) of a tree."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """The most rows that an alignment holds in a run, each as long as it may become, for the prediction of memory."""

    in_flight: int
    batch: int  # rows of a forward
    num_fed: int  # tokens of a row between two commits
    length: int  # tokens of a row, with those of its last draft
    columns: int  # of a row's storage: with room to grow
    columns_before: int  # of the same, before it grew last


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

    prompts_by_position = False
    """Whether prompts are fed with columns that are positions (``CausalLM.forward_chains``), and so without masks."""

    restores_states = False
    """Whether it restores the recurrent states of a model that has them (``CausalLM.recurrent``)."""

    feeds_given_only = False
    """Whether a forward computes the tokens it is given and no others, so that a sparse view of one
    (``CausalLM.call_options``) changes no committed token."""

    reads_at_once: int | None = None
    """Tokens of a row that `Reader` feeds in one forward, at most; None: all."""

    @classmethod
    def kept_columns(cls, rows: Admitted) -> float:
        """Columns of KV, of all rows together, that exist during a forward, for the prediction of memory.

        By default the storage of all rows.
        """
        return rows.in_flight * rows.columns

    @classmethod
    def kept_states(cls, rows: Admitted) -> float:
        """Recurrent states, of all rows together, for the prediction of memory; by default none."""
        return 0

    @classmethod
    def moved_columns(cls, rows: Admitted) -> float:
        """Columns of KV that exist besides these while rows are moved between forwards.

        By default a second copy of a batch, during a rebuild.
        """
        return rows.batch * rows.length

    @classmethod
    def fed_rows(cls, in_flight: int, batch: int) -> int:
        """Rows of one forward, at most, including rows that the strategy adds, for the prediction of memory.

        By default the rows that the caller names.
        """
        return batch

    def expect(self, num_rows: int) -> None:  # noqa: B027 (optional)
        """Optimisation hint: ``num_rows`` new rows are about to be admitted, in one or more calls."""

    def hold(self, contents: list[list[int]]) -> list[int]:
        """Rows with these tokens are about to be admitted, in one or more calls: hold once what they have in common.

        Without contents: no row is, so free what is kept for rows to come.

        Returns:
            First tokens of each that need no computing if it is admitted with at least these. By default none.
        """
        return [0] * len(contents)

    def declare(self, tokens: list[int]) -> None:
        """Rows to come begin with these tokens: hold their keys and values once, until the last row is gone.

        Only of strategies with a setting ``shared_prefix``.
        """
        raise NotImplementedError(f"{type(self).__name__} holds no columns for several rows")

    def shared_length(self, row: int) -> int:
        """First tokens of a row whose keys and values are held once for several rows. By default none."""
        return 0

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
